//! Pipes between two sockets: their clients have been told to come back with another one, and what is meant for them is
//! kept meanwhile.
//!
//! In a room that keeps its frames that is the room's history. Elsewhere it is the outbox, which keeps its seat in the
//! room, bounded as ever, until the next socket takes it over. One that opens on another node can't: it is told how many
//! frames were lost.

use std::sync::Arc;

use serde_json::json;
use tokio::time::{Duration, Instant};

use super::{Entry, Facts, Node, ReplyTo, Resumption};
use crate::{
    hub::{Outbox, Room},
    protocol::{Cause, Command, Fence, Mail, NodeId, PairId, Reply},
};

/// How long the node that keeps frames for a pair may take to say how many they are.
const PATIENCE: Duration = Duration::from_secs(2);

/// An outbox without a socket.
pub struct Parked {
    /// Of which socket it was.
    pub fence: Fence,
    /// Where it sits.
    pub room: Arc<Room>,
    /// What waits.
    pub outbox: Arc<Outbox>,
    /// Frames that were given to the last socket.
    pub given: u64,
    /// Frames that were meant for it and could not be written any more.
    pub unwritten: u64,
    /// Whether its peer said that it had them all.
    pub clean: bool,
}

impl Node {
    /// Keeps an outbox for the pair's next socket, for as long as the pair waits for one.
    pub fn park(self: &Arc<Self>, pair: PairId, parked: Parked, linger: Duration) {
        let fence = parked.fence;
        if let Some(older) = self.parked.insert(pair, parked) {
            self.unseat(&older);
        }
        let node = Arc::clone(self);
        self.spawn("parked", async move {
            tokio::select! {
                () = tokio::time::sleep(linger) => {}
                () = node.stopped.cancelled() => {}
            }
            if let Some((_, parked)) = node.parked.remove_if(&pair, |_, parked| parked.fence == fence) {
                node.give_up_parked(pair, &parked).await;
            }
        });
    }

    fn unseat(&self, parked: &Parked) {
        self.hub.exit(&parked.room, &parked.outbox);
    }

    /// Nobody gets what waits, nor what would still come: how many frames are lost with it.
    fn discard(&self, parked: &Parked, received: Option<u64>) -> u64 {
        self.unseat(parked);
        let (waiting, dropped) = parked.outbox.begin_anew();
        waiting + dropped + missed(parked, received)
    }

    async fn give_up_parked(&self, pair: PairId, parked: &Parked) {
        self.unseat(parked);
        self.exit(pair, parked.fence, parked.room.name()).await;
    }

    /// What is kept here for the pair's new socket in a room that it has just entered: its outbox, in its seat. What is
    /// kept for it elsewhere is given up.
    pub(super) async fn take_parked(
        self: &Arc<Self>,
        (pair, fence): (PairId, Fence),
        facts: &mut Facts,
        entry: &Entry,
        received: Option<u64>,
    ) -> Option<(Resumption, Option<Parked>)> {
        let node = facts.parked.take()?;
        if node != self.id {
            return Some((self.ask_for_parked(node, pair, received).await, None));
        }
        let Some((_, parked)) = self.parked.remove(&pair) else {
            return Some((Resumption { replayed: 0, lost: None, exact: false }, None));
        };
        if parked.room.name() != &entry.room || parked.fence.epoch + 1 != fence.epoch {
            let lost = Some(self.discard(&parked, received));
            self.give_up_parked(pair, &parked).await;
            return Some((Resumption { replayed: 0, lost, exact: false }, None));
        }
        let (replayed, dropped) = parked.outbox.begin_anew();
        let lost = Some(dropped + missed(&parked, received));
        let exact = received.map_or(parked.clean, |received| received <= parked.given);
        // It was counted as a listener to the room already.
        self.lose_interest(&entry.room).await;
        self.keep_seat(entry);
        Some((Resumption { replayed, lost, exact }, Some(parked)))
    }

    async fn ask_for_parked(self: &Arc<Self>, node: NodeId, pair: PairId, received: Option<u64>) -> Resumption {
        let (number, reply) = self.expect_reply();
        let cause = Cause { key: None, id: None, sibling: None };
        let ask = Mail::Ask { number, from: self.id, pair, command: Command::Unpark { received }, cause };
        let reply = self.post_until_answered(node, &ask, number, reply, Instant::now() + PATIENCE).await;
        let lost = match reply {
            Ok(Reply::Done(said)) => said["lost"].as_u64(),
            _ => None,
        };
        Resumption { replayed: 0, lost, exact: false }
    }

    /// The pair's new socket is on another node.
    pub(super) fn unpark(self: &Arc<Self>, pair: PairId, received: Option<u64>, reply: ReplyTo) {
        let parked = self.parked.remove(&pair);
        let lost = parked.as_ref().map(|(_, parked)| self.discard(parked, received));
        if let Some((pair, parked)) = parked {
            let node = Arc::clone(self);
            self.spawn("unpark", async move { node.give_up_parked(pair, &parked).await });
        }
        self.reply(reply, Reply::Done(json!({ "lost": lost })));
    }
}

/// Frames that the last socket was meant to have and are not known to have been received.
fn missed(parked: &Parked, received: Option<u64>) -> u64 {
    parked.unwritten + received.map_or(0, |received| parked.given.saturating_sub(received))
}
