//! Talk: what is told in rooms, beside the pipe, to all their members' siblings. One entry each, however many they are.

use bytes::Bytes;
use serde_json::json;

use super::{Node, now_text};
use crate::{
    broker::{Counted, Member},
    protocol::{Event, EventKind, PairId, Position, RoomName, Topic, Unsaid},
};

/// Stands in the place of a number while what is around it is encoded: as MessagePack has `u64::MAX`. No text can
/// contain it, since it is no UTF-8.
const GAP: [u8; 9] = [0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/// What a room is told of a member that comes or goes; it is not told to that one.
pub(super) fn counted(kind: EventKind, member: &Member) -> Option<Counted> {
    let pair: PairId = member.id.parse().ok()?;
    let unsaid = Some(Box::new(Unsaid { of: Some(pair), ..Unsaid::default() }));
    let data = json!({"pair": pair, "members": u64::MAX});
    let whole = Event { kind, at: now_text(), data, cause: None, unsaid }.encode().ok()?;
    let at = whole.windows(GAP.len()).position(|bytes| bytes == GAP)?;
    let whole = Bytes::from(whole);
    Some(Counted { nonce: rand::random(), before: whole.slice(..at), after: whole.slice(at + GAP.len()..) })
}

impl Node {
    /// The newest place in a room's talk, if the broker answers.
    pub async fn talk_head(&self, room: &RoomName) -> Option<Position> {
        self.broker.heads(&[Topic::Talk(room.clone())]).await.ok()?.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::NodeId;

    #[test]
    fn a_number_fits_in_between() {
        let pair = PairId::fresh();
        let member = Member { id: pair.to_string(), node: NodeId::fresh(), value: Bytes::new() };
        let Counted { before, after, .. } = counted(EventKind::PeerLeft, &member).unwrap();
        for members in [0u64, 1, 127, 128, 10_000, 100_000] {
            let count = rmp_serde::to_vec(&members).unwrap();
            let event = Event::decode(&[&before[..], &count, &after].concat()).unwrap();
            assert_eq!((event.kind, event.data), (EventKind::PeerLeft, json!({"pair": pair, "members": members})));
            assert_eq!(event.unsaid.and_then(|unsaid| unsaid.of), Some(pair));
        }
    }
}
