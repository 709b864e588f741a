//! Talk: what is told in rooms, beside the pipe, to all their members' siblings. One entry each, however many they are.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tokio::time::{Duration, timeout};

use super::{Node, now, story::RETRY};
use crate::{
    broker::{Census, Changes, Counted, Member},
    protocol::{Event, EventKind, PairId, Position, RoomName, Said, Topic, Unsaid},
};

/// Numbers that stand in the place of something while what is around it is written. Nothing else in there has as many
/// digits.
const COUNT: u64 = u64::MAX;
const LIST: u64 = u64::MAX - 1;

/// How long those who come to a crowd, or leave it, wait for others to be told of with them.
const TOGETHER: Duration = Duration::from_millis(100);
/// How often it is tried to tell of them. Whoever looks at the room later finds those who still wait.
const TRIES: u32 = 20;

/// What stands before and behind a number in an encoded event.
fn around(whole: &Bytes, number: u64) -> Option<(Bytes, Bytes)> {
    let gap = number.to_string();
    let at = whole.windows(gap.len()).position(|bytes| bytes == gap.as_bytes())?;
    Some((whole.slice(..at), whole.slice(at + gap.len()..)))
}

/// What a room is told of a member that comes or goes; it is not told to that one.
pub(super) fn counted(kind: EventKind, member: &Member) -> Option<Counted> {
    let pair = PairId::from_uuid(member.id);
    let unsaid = Some(Box::new(Unsaid { of: Some(pair.uuid()), ..Unsaid::default() }));
    let data = json!({"pair": pair, "members": COUNT});
    let whole = Event::new(kind, now(), &Said { data, cause: None }, unsaid).encode().ok()?;
    let (before, after) = around(&whole.into(), COUNT)?;
    Some(Counted { nonce: rand::random(), before, after })
}

/// What a room is told of many members that have come to it or left it.
fn changes() -> Option<Changes> {
    let parts = |kind| {
        let data = json!({"members": COUNT, "pairs": LIST});
        let whole = Event::new(kind, now(), &Said { data, cause: None }, None).encode().ok()?;
        let (before, rest) = around(&whole.into(), COUNT)?;
        let (between, behind) = around(&rest, LIST)?;
        Some([before, between, behind])
    };
    let (joined, left) = (parts(EventKind::PeerJoined)?, parts(EventKind::PeerLeft)?);
    Some(Changes { nonce: rand::random(), joined, left })
}

impl Node {
    /// The newest place in a room's talk, if the broker answers.
    pub async fn talk_head(&self, room: &RoomName) -> Option<Position> {
        self.broker.heads(&[Topic::Talk(room.clone())]).await.ok()?.first().copied()
    }

    /// Has a crowd told, in a moment, of those who have come to it and left it, if any wait for that.
    pub(super) fn tell_of_crowd(self: &Arc<Self>, room: &RoomName, census: &Census) {
        if !census.untold || !self.crowds.insert(room.clone()) {
            return;
        }
        let (node, room) = (Arc::clone(self), room.clone());
        self.spawn("crowd", async move {
            drop(timeout(TOGETHER, node.stopped.cancelled()).await);
            // Whoever comes from here on may find that nobody is about to tell of it.
            node.crowds.remove(&room);
            for _ in 0..TRIES {
                let Some(changes) = changes() else { return };
                match node.registry.tell_changes(&room, &changes, &node.settings.keep).await {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(_) => drop(timeout(RETRY, node.stopped.cancelled()).await),
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::NodeId;

    #[test]
    fn a_number_fits_in_between() {
        let pair = PairId::fresh();
        let member = Member { id: pair.uuid(), node: NodeId::fresh(), value: Bytes::new() };
        let Counted { before, after, .. } = counted(EventKind::PeerLeft, &member).unwrap();
        for members in [0u64, 1, 127, 128, 10_000, 100_000] {
            let count = members.to_string();
            let event = Event::decode(&[&before[..], count.as_bytes(), &after].concat().into()).unwrap();
            assert_eq!((event.kind, event.data()), (EventKind::PeerLeft, json!({"pair": pair, "members": members})));
            assert_eq!(event.unsaid.and_then(|unsaid| unsaid.of), Some(pair.uuid()));
        }
    }

    #[test]
    fn a_number_and_a_list_fit_in_between() {
        let Changes { joined, left, .. } = changes().unwrap();
        for (parts, kind) in [(joined, EventKind::PeerJoined), (left, EventKind::PeerLeft)] {
            for many in [1, 15, 16, 300] {
                let pairs: Vec<_> = (0..many).map(|_| PairId::fresh().to_string()).collect();
                let (count, list) = (many.to_string(), serde_json::to_vec(&pairs).unwrap());
                let [before, between, behind] = &parts;
                let event =
                    Event::decode(&[before, count.as_bytes(), between, &list, behind].concat().into()).unwrap();
                assert_eq!((event.kind, event.data()), (kind, json!({"pairs": pairs, "members": many})));
            }
        }
    }
}
