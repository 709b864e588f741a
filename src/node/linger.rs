//! Pairs without a client socket: how long they wait for one, and their end when none came.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::json;

use super::Node;
use crate::protocol::{EventKind, Fence, PairId};

/// How exact the end of a pair is.
const TICK: Duration = Duration::from_millis(250);
/// How much longer than its linger a record stays in the registry, so that its end can still be told by this node;
/// when the node is gone by then, the record vanishes by itself.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// The pairs that this node was the last to hold or to make, by the end of their waiting.
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
                match self.registry.end(pair, Some(fence), self.settings.keep.age).await {
                    Ok(Some(_)) => {
                        let data = json!({"reason": "no client socket within its linger"});
                        if let Err(failure) = self.raise(pair, EventKind::PairEnded, data, None).await {
                            tracing::warn!(%pair, %failure, "the end of a pair could not be told");
                        }
                    }
                    Ok(None) => {}
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
