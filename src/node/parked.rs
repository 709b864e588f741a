//! Pipes between two sockets: their clients have been told to come back with another one, and what is meant for them is
//! kept meanwhile.
//!
//! In a room that keeps its frames that is the room's history. Elsewhere it is the outbox, which keeps its seat in the
//! room, bounded as ever, until the next socket takes it over; for one that opens on another node it crosses to there
//! (`crossing`).

use std::sync::Arc;

use tokio::time::Duration;

use super::{Entry, Facts, Node, Resumption};
use crate::{
    hub::{Outbox, Room},
    protocol::{Fence, PairId, RoomName},
};

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
    pub(super) fn discard(&self, parked: &Parked, received: Option<u64>) -> u64 {
        self.unseat(parked);
        let (waiting, dropped) = parked.outbox.begin_anew();
        waiting + dropped + parked.missed(received).0
    }

    pub(super) async fn give_up_parked(self: &Arc<Self>, pair: PairId, parked: &Parked) {
        self.unseat(parked);
        self.exit(pair, parked.fence, parked.room.name()).await;
    }

    /// What is kept for the pair's new socket in a room that it has just entered: an outbox, in its seat. One that is kept
    /// here for another room is given up.
    pub(super) async fn take_parked(
        self: &Arc<Self>,
        (pair, fence): (PairId, Fence),
        facts: &mut Facts,
        entry: &Entry,
        received: Option<u64>,
    ) -> Option<(Resumption, Option<(Arc<Room>, Arc<Outbox>)>)> {
        let node = facts.parked.take()?;
        if node != self.id {
            let (resumed, room, outbox) = self.fetch_parked(node, (pair, fence), facts, entry, received).await;
            return Some((resumed, Some((room, outbox))));
        }
        let Some((_, parked)) = self.parked.remove(&pair) else {
            return Some((Resumption { replayed: 0, lost: None, exact: false }, None));
        };
        if !parked.is_for(&entry.room, fence.epoch) {
            let lost = Some(self.discard(&parked, received));
            self.give_up_parked(pair, &parked).await;
            return Some((Resumption { replayed: 0, lost, exact: false }, None));
        }
        let (replayed, dropped) = parked.outbox.begin_anew();
        let (missed, exact) = parked.missed(received);
        // It was counted as a listener to the room already.
        self.lose_interest(&entry.room).await;
        self.keep_seat(entry);
        Some((Resumption { replayed, lost: Some(dropped + missed), exact }, Some((parked.room, parked.outbox))))
    }
}

impl Parked {
    /// Whether it waits for this socket in this room.
    pub(super) fn is_for(&self, room: &RoomName, epoch: u64) -> bool {
        self.room.name() == room && self.fence.epoch + 1 == epoch
    }

    /// How many frames the last socket was meant to have and are not known to have been received, and whether it is known
    /// exactly which it had.
    pub(super) fn missed(&self, received: Option<u64>) -> (u64, bool) {
        let unreceived = received.map_or(0, |received| self.given.saturating_sub(received));
        (self.unwritten + unreceived, received.map_or(self.clean, |received| received <= self.given))
    }
}
