//! Pairs without a client socket: how long they wait for one, and their end when none came.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::json;

use super::{Node, story::draft};
use crate::protocol::{EventKind, Fence, PairId};

/// How exact the end of a pair is.
const TICK: Duration = Duration::from_millis(250);
/// The pairs that this node is the keeper of, by the end of their waiting. The registry knows whose they are: another
/// node adopts them when this one is gone.
#[derive(Default)]
pub(super) struct Lingering(Mutex<BinaryHeap<Reverse<Due>>>);

type Due = (Instant, PairId, Fence);

impl Lingering {
    /// Ends the pair after `linger`, unless it has another client socket than `fence`'s by then.
    pub(super) fn add(&self, pair: PairId, fence: Fence, linger: Duration) {
        self.0.lock().push(Reverse((Instant::now() + linger, pair, fence)));
    }

    fn due(&self) -> Option<(PairId, Fence)> {
        let mut heap = self.0.lock();
        heap.peek().filter(|Reverse((at, ..))| *at <= Instant::now())?;
        heap.pop().map(|Reverse((_, pair, fence))| (pair, fence))
    }
}

impl Node {
    /// Ends pairs whose time has come, one after the other.
    pub(super) async fn end_lingering(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.stopped.cancelled() => return,
            }
            while let Some((pair, fence)) = self.lingering.due() {
                let data = json!({"reason": "no client socket within its linger"});
                let told = [draft(EventKind::PairEnded, data, None)];
                match self.registry.end(pair, fence, None, &told, &self.settings.keep).await {
                    Ok(_) => {}
                    Err(_) => {
                        // Try again when the broker is back.
                        self.lingering.add(pair, fence, Duration::from_secs(1));
                        break;
                    }
                }
            }
        }
    }
}
