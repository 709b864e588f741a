//! Rooms: who sits in them on this node, and the fan-out to them.

use std::sync::Arc;

use parking_lot::RwLock;

use super::{Hearing, Outbox, Postmen, Source};
use crate::protocol::{Mark, PairId, RoomName, Run};

/// The members of a room on this node.
pub struct Room {
    name: RoomName,
    members: RwLock<Vec<(PairId, Arc<Outbox>)>>,
    postmen: Arc<Postmen>,
}

impl Room {
    /// A room without members.
    #[must_use]
    pub fn new(name: RoomName, postmen: &Arc<Postmen>) -> Self {
        Self { name, members: RwLock::default(), postmen: Arc::clone(postmen) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &RoomName {
        &self.name
    }

    /// Hands a run to every member but one, its sender: a reference count and a short lock each, and a second reference
    /// count where it is the first that waits.
    pub fn fan_out(&self, run: &Run, source: Source, except: Option<PairId>) {
        self.fan_out_then(run, source, except, || ());
    }

    /// The same, and passes it `on` while no outbox can begin to hear or cease to.
    pub fn fan_out_then<T>(&self, run: &Run, source: Source, except: Option<PairId>, on: impl FnOnce() -> T) -> T {
        let members = self.members.read();
        let others = members.iter().filter(|(pair, _)| except != Some(*pair));
        let due: Vec<_> =
            others.filter(|(_, outbox)| outbox.offer(run, source)).map(|(_, outbox)| Arc::clone(outbox)).collect();
        let passed = on();
        drop(members);
        self.postmen.send(due, run.len());
        passed
    }

    /// Hands a mark to every member whose siblings want to know of marks, its sender among them.
    pub fn fan_out_mark(&self, mark: &Arc<Mark>, source: Source) {
        self.fan_out_mark_then(mark, source, || ());
    }

    /// The same, and passes it `on` as a run.
    pub fn fan_out_mark_then<T>(&self, mark: &Arc<Mark>, source: Source, on: impl FnOnce() -> T) -> T {
        let weight = mark.weight();
        let members = self.members.read();
        for (_, outbox) in members.iter() {
            outbox.offer_mark(mark, weight, source);
        }
        on()
    }

    /// Changes what an outbox hears, and does `then`, between what members here have said and what they will say:
    /// everything that was handed out before has been passed on, too.
    pub fn cut<T>(&self, outbox: &Outbox, hearing: Hearing, then: impl FnOnce() -> T) -> T {
        let _members = self.members.write();
        outbox.hear(hearing);
        then()
    }

    /// Has all members' actors look around.
    pub(super) fn ring_all(&self) {
        for (_, outbox) in self.members.read().iter() {
            outbox.ring();
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

    /// Puts another outbox in the place of a member's: what comes now goes there, and nothing is lost or doubled between.
    pub fn replace(&self, before: &Arc<Outbox>, outbox: &Arc<Outbox>) {
        if let Some(member) = self.members.write().iter_mut().find(|(_, member)| Arc::ptr_eq(member, before)) {
            member.1 = Arc::clone(outbox);
        }
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
        let pair = |outbox: &Arc<Outbox>| {
            let members = rooms[0].members.read();
            members.iter().find(|(_, member)| Arc::ptr_eq(member, outbox)).map(|(pair, _)| *pair)
        };
        rooms[0].fan_out(&Run::of(FrameKind::Text, b"x"), Source::Here, pair(&outboxes[0]));
        assert_eq!(queued(), [0, 1, 1]);
        hub.exit(&rooms[1], &outboxes[1]);
        rooms[0].fan_out(&Run::of(FrameKind::Text, b"y"), Source::Here, None);
        assert_eq!(queued(), [1, 1, 2]);
        let another = Arc::new(Outbox::new(1_000, Slow::Close));
        rooms[0].replace(&outboxes[0], &another);
        rooms[0].fan_out(&Run::of(FrameKind::Text, b"z"), Source::Here, pair(&outboxes[2]));
        assert_eq!((queued(), another.level().queued_frames), (vec![1, 1, 2], 1));
        hub.exit(&rooms[0], &another);
        hub.exit(&rooms[2], &outboxes[2]);
        assert!(hub.room(&name).is_none(), "an empty room is forgotten");
    }
}
