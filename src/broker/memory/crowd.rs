//! What is told of members that come and go: at once, or of many together.

use super::{port::Port, store::Store};
use crate::{
    broker::{CROWD, Changes, Counted, Draft, Group, Keep, MOST_CHANGES},
    protocol::{PairId, RoomName, Topic},
};

impl Store {
    fn count_members(&self, room: &RoomName) -> u64 {
        self.groups.get(&Group::Room(room.clone())).map_or(0, |roll| roll.count())
    }
}

impl Port {
    /// A member has come (true) or gone: that is told, or in a crowd waits to be.
    pub(super) fn tell_count(
        &self,
        store: &mut Store,
        room: &RoomName,
        change: (bool, PairId),
        told: Option<(&Counted, &Keep)>,
    ) {
        let Some((Counted { nonce, before, after }, keep)) = told else { return };
        let members = store.count_members(room);
        if members >= CROWD || store.untold.contains_key(room) {
            store.untold.entry(room.clone()).or_default().push_back(change);
            return;
        }
        let count = members.to_string();
        let draft = Draft { nonce: *nonce, payload: [before, count.as_bytes(), after].concat().into() };
        self.add(store, &Topic::Talk(room.clone()), &[draft], keep);
    }

    /// Tells of those who wait together, and returns how many still do.
    pub(super) fn tell_of_crowd(&self, store: &mut Store, room: &RoomName, told: &Changes, keep: &Keep) -> u64 {
        let count = store.count_members(room).to_string();
        let Some(changes) = store.untold.get_mut(room) else { return 0 };
        let joined = changes.front().is_some_and(|(joined, _)| *joined);
        let run = changes.iter().take(MOST_CHANGES).take_while(|(is, _)| *is == joined).count();
        let who: Vec<_> = changes.drain(..run).map(|(_, id)| id).collect();
        let left = changes.len() as u64;
        if left == 0 {
            store.untold.remove(room);
        }
        let who = serde_json::to_vec(&who).unwrap_or_default();
        let [before, between, behind] = if joined { &told.joined } else { &told.left };
        let payload = [before, count.as_bytes(), between, &who, behind].concat().into();
        self.add(store, &Topic::Talk(room.clone()), &[Draft { nonce: told.nonce, payload }], keep);
        left
    }
}
