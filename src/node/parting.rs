//! The end of a hold on a pair, and the events that tell it: one step in the registry, tried until it is decided.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    Facts, Node, Story,
    story::{RETRY, draft, draft_with, lost_draft},
};
use crate::{
    broker::{Appended, BrokerError, DRAFTS, Draft, Step, Under},
    protocol::{Cause, EventKind, Fence, PairId, Topic, Unsaid},
};

/// How many events of sockets that are gone may wait for the broker, on the whole node: some 20 MiB. Beyond, a socket's
/// last events are only counted.
const MOST_WAITING: usize = 65_536;

/// A client socket that is over, as far as this node is concerned.
pub struct Parting {
    pub(super) pair: PairId,
    pub(super) fence: Fence,
    pub(super) facts: Facts,
    /// What is to be told before the step, in order.
    rest: Vec<Draft>,
    /// What is told by the step.
    last: Vec<Draft>,
    /// Whether the pair ends with it.
    ends: bool,
}

/// How it came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parted {
    /// The pair was given up, or ended, and that is told.
    Done,
    /// Another had the pair already, and has told or will tell how this socket ended.
    Disowned,
}

impl Parting {
    /// Of a socket that was not told of yet.
    #[must_use]
    pub fn unheard(pair: PairId, fence: Fence, facts: Facts) -> Self {
        Self { pair, fence, facts, rest: Vec::new(), last: Vec::new(), ends: false }
    }

    /// Of a socket with a story, which ends with `client.closed`.
    #[must_use]
    pub fn closed(
        story: Story,
        (pair, fence, facts): (PairId, Fence, Facts),
        data: Value,
        cause: Option<Cause>,
        stand: Option<Box<Unsaid>>,
    ) -> Self {
        let last = vec![draft_with(EventKind::ClientClosed, data, cause, stand)];
        Self { pair, fence, facts, rest: story.into_rest(), last, ends: false }
    }

    /// With it ends the pair.
    #[must_use]
    pub fn and_pair_ended(mut self, data: Value, cause: Option<Cause>) -> Self {
        self.last.push(draft(EventKind::PairEnded, data, cause));
        self.ends = true;
        self
    }
}

/// What is told of a client socket whose node can't tell it.
pub(super) fn node_lost(fence: Fence) -> Draft {
    let data = json!({
        "epoch": fence.epoch, "code": 1006, "reason": "the node was lost", "clean": false, "by": "node_lost",
        "frames_in": null, "frames_out": null, "bytes_in": null, "bytes_out": null, "seconds": null,
    });
    draft(EventKind::ClientClosed, data, None)
}

impl Node {
    /// Completes when every socket that is gone is told of, as far as this node can.
    pub(super) async fn all_parted(&self) {
        while self.parting.load(Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Gives up a pair, or ends it. Goes on by itself, for as long as the broker can't be reached and this node runs;
    /// the receiver is told when it is decided.
    pub fn part(self: &Arc<Self>, mut parting: Parting) -> oneshot::Receiver<Parted> {
        let waiting = parting.rest.len() + 1;
        if self.parting.fetch_add(waiting, Relaxed) + waiting > MOST_WAITING && waiting > 2 {
            // The first may have been tried before: it must stay what it was.
            let lost = parting.rest.drain(1..).count() as u64;
            parting.rest.push(lost_draft(Some(lost)));
        }
        let (decided, told) = oneshot::channel();
        let node = Arc::clone(self);
        self.spawn("parting", async move {
            let outcome = node.stopped.run_until_cancelled(node.insist_on(&mut parting)).await;
            node.parting.fetch_sub(waiting, Relaxed);
            match outcome {
                // Nobody waits any more.
                Some(parted) => drop(decided.send(parted)),
                None => tracing::warn!(pair = %parting.pair, "a client socket's end was not told: the node stops"),
            }
        });
        told
    }

    async fn insist_on(&self, parting: &mut Parting) -> Parted {
        loop {
            let step = match self.try_parting(parting).await {
                Ok(Step::Missing) => {
                    // The broker lost its data: told again what it knew, it takes the end as well.
                    self.restore(parting.pair, parting.fence, &parting.facts, None).await.map(|known| match known {
                        true => Step::Missing,
                        false => Step::Refused,
                    })
                }
                step => step,
            };
            match step {
                Ok(Step::Taken(())) => {
                    if !parting.ends {
                        self.lingering.add(parting.pair, parting.fence, parting.facts.linger());
                    }
                    return Parted::Done;
                }
                Ok(Step::Refused) => {
                    self.confess(parting.pair, parting.rest.len() as u64).await;
                    return Parted::Disowned;
                }
                Ok(Step::Missing) => {}
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn try_parting(&self, parting: &mut Parting) -> Result<Step<()>, BrokerError> {
        let Parting { pair, fence, facts, rest, last, ends } = parting;
        let keep = &self.settings.keep;
        while !rest.is_empty() {
            let some = rest.len().min(DRAFTS);
            let under = Under { fence: *fence, after: None };
            match self.broker.append(&Topic::Pair(*pair), Some(under), &rest[..some], keep).await? {
                Appended::At(..) | Appended::Behind(_) => drop(rest.drain(..some)),
                Appended::Refused => return Ok(Step::Refused),
                Appended::Missing => return Ok(Step::Missing),
            }
        }
        if *ends {
            self.registry.end(*pair, *fence, Some(self.id), last, keep).await
        } else {
            self.registry.release(*pair, *fence, self.id, facts.linger(), last, keep).await
        }
    }

    /// Events of a socket that another has closed in the story: they can't be told any more, but that there were some
    /// can.
    async fn confess(&self, pair: PairId, lost: u64) {
        if lost == 0 {
            return;
        }
        tracing::warn!(%pair, events = lost, "events came too late to be told");
        let drafts = [lost_draft(Some(lost))];
        for _ in 0..3 {
            match self.registry.look_up(pair).await {
                // Nothing is told behind the end.
                Ok(None) => return,
                Ok(Some(record)) if record.ended => return,
                Ok(Some(_)) => {}
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    continue;
                }
            }
            if self.broker.append(&Topic::Pair(pair), None, &drafts, &self.settings.keep).await.is_ok() {
                return;
            }
        }
    }
}
