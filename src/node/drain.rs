//! The end of a node: siblings are told, sockets are closed over a while, and nothing is left behind.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::{Node, time_text};
/// How many sockets may be closed in a second when there are many: those who reconnect arrive elsewhere at this pace.
/// Few are spread over the time that the node answers anyhow.
const PACE: u32 = 500;

/// When what happens in a drain.
#[derive(Debug, Clone, Copy)]
pub struct DrainPlan {
    /// Client sockets are closed at a random moment within this.
    pub clients: Duration,
    /// Siblings whose client socket is elsewhere are closed after this.
    pub siblings: Duration,
    /// Siblings whose client socket is here are closed soon after it, or after this.
    pub last: Duration,
    /// Nobody waits for the reply to a command any longer than this.
    pub replies: Duration,
}

impl Node {
    /// When sockets are closed in a drain of this node as it stands.
    #[must_use]
    pub fn drain_plan(&self) -> DrainPlan {
        let sockets = u32::try_from(self.hub.client_count()).unwrap_or(u32::MAX);
        let clients = (Duration::from_secs(1) * sockets / PACE).max(self.settings.farewell);
        let clients = clients.min(self.settings.drain * 2 / 5);
        let siblings = clients + (self.settings.drain / 10).min(Duration::from_secs(1));
        DrainPlan { clients, siblings, last: self.settings.drain * 7 / 10, replies: self.settings.drain * 4 / 5 }
    }

    /// Whether the drain has begun: what costs nothing to ask.
    #[must_use]
    pub fn drains(&self) -> bool {
        self.drain_notice.get().is_some()
    }

    /// Stops: returns when every task has ended, or at the end of the time that the settings give. True when all
    /// ended by themselves.
    pub async fn drain(self: &Arc<Self>) -> bool {
        let deadline = Instant::now() + self.settings.drain;
        let answering = Instant::now() + self.settings.farewell;
        tracing::info!(clients = self.hub.client_count(), "draining");
        let notice = json!({
            "deadline": time_text(SystemTime::now() + self.settings.drain),
            "reconnect_within": self.drain_plan().siblings.as_secs_f64().ceil().max(1.0),
        });
        // Every feed tells it, also one that is only just opening.
        drop(self.drain_notice.set(notice));
        self.draining.cancel();
        self.hub.ring_all();
        self.sockets.close();
        let all_closed = timeout_at(deadline - self.settings.drain / 10, self.sockets.wait()).await.is_ok();
        // Only who has told everything leaves the rest to the others.
        if timeout_at(deadline - self.settings.drain / 10, self.all_parted()).await.is_ok() {
            self.retiring.cancel();
            drop(timeout_at(deadline - self.settings.drain / 20, self.retired.cancelled()).await);
        }
        tokio::time::sleep_until(answering).await;
        self.stopped.cancel();
        self.tasks.close();
        let all_ended = timeout_at(deadline, self.tasks.wait()).await.is_ok();
        if !(all_closed && all_ended) {
            tracing::warn!(sockets = self.sockets.len(), tasks = self.tasks.len(), "stopped before all had ended");
        }
        all_closed && all_ended
    }
}
