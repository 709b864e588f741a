//! Rooms: who sits in them on this node, and the fan-out to them.

use std::sync::Arc;

use parking_lot::RwLock;

use super::Outbox;
use crate::protocol::{Mark, PairId, RoomName, Run};

/// The members of a room on this node.
pub struct Room {
    name: RoomName,
    members: RwLock<Vec<(PairId, Arc<Outbox>)>>,
}

impl Room {
    /// A room without members.
    #[must_use]
    pub fn new(name: RoomName) -> Self {
        Self { name, members: RwLock::default() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &RoomName {
        &self.name
    }

    /// Hands a run to every member but the one with `sender`'s outbox: a reference count and a short lock each.
    pub fn fan_out(&self, run: &Run, sender: Option<&Arc<Outbox>>) {
        for (_, outbox) in self.members.read().iter() {
            if sender.is_none_or(|sender| !Arc::ptr_eq(sender, outbox)) {
                outbox.push(run);
            }
        }
    }

    /// The same for runs that have gone through the broker: the sender is known by its pair.
    pub fn fan_out_but(&self, run: &Run, except: Option<PairId>) {
        for (pair, outbox) in self.members.read().iter() {
            if except != Some(*pair) {
                outbox.push(run);
            }
        }
    }

    /// Hands a mark to every member whose siblings want to know of marks, its sender among them.
    pub fn fan_out_mark(&self, mark: &Arc<Mark>) {
        let weight = mark.weight();
        for (_, outbox) in self.members.read().iter() {
            outbox.push_mark(mark, weight);
        }
    }

    /// Whose client sockets sit here.
    #[must_use]
    pub fn pairs(&self) -> Vec<PairId> {
        self.members.read().iter().map(|(pair, _)| *pair).collect()
    }

    /// Whether a pair's client socket sits here.
    #[must_use]
    pub fn has(&self, pair: PairId) -> bool {
        self.members.read().iter().any(|(member, _)| *member == pair)
    }

    pub(super) fn add(&self, pair: PairId, outbox: &Arc<Outbox>) {
        self.members.write().push((pair, Arc::clone(outbox)));
    }

    /// Removes a member; true when none is left.
    pub(super) fn remove(&self, outbox: &Arc<Outbox>) -> bool {
        let mut members = self.members.write();
        if let Some(at) = members.iter().position(|(_, member)| Arc::ptr_eq(member, outbox)) {
            members.swap_remove(at);
        }
        members.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::Hub,
        protocol::{FrameKind, Slow},
    };

    #[test]
    fn frames_reach_members_and_not_their_sender() {
        let hub = Hub::<()>::default();
        let name: RoomName = "a".parse().unwrap();
        let outboxes: Vec<_> = (0..3).map(|_| Arc::new(Outbox::new(1_000, Slow::Close))).collect();
        let rooms: Vec<_> = outboxes.iter().map(|o| hub.enter(&name, PairId::fresh(), o)).collect();
        let queued = || outboxes.iter().map(|o| o.level().queued_frames).collect::<Vec<_>>();
        rooms[0].fan_out(&Run::of(FrameKind::Text, b"x"), Some(&outboxes[0]));
        assert_eq!(queued(), [0, 1, 1]);
        hub.exit(&rooms[1], &outboxes[1]);
        rooms[0].fan_out(&Run::of(FrameKind::Text, b"y"), None);
        assert_eq!(queued(), [1, 1, 2]);
        let pairs = rooms[0].pairs();
        rooms[0].fan_out_but(&Run::of(FrameKind::Text, b"z"), Some(pairs[0]));
        assert_eq!(queued().iter().sum::<u64>(), 5, "one of the two that are left");
        hub.exit(&rooms[0], &outboxes[0]);
        hub.exit(&rooms[2], &outboxes[2]);
        assert!(hub.room(&name).is_none(), "an empty room is forgotten");
    }
}
