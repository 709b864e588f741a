//! What a node is answerable for, kept so that another can clean up after it.
//!
//! Records and groups live in other slots than a node's list of them, so the two can't change in one step. The list
//! errs on the safe side: a note is made before what it stands for is taken, and struck after it is given up, and
//! whoever reads it compares it with what it stands for. Each note carries the claim's nonce, or the joining's mark: so
//! to strike an old one can't hit the new one of the same thing.
//!
//! Nor is a note struck at once: the primary that heard of the giving up may be replaced by one that has not. A moment
//! later, what it stood for is looked up once more; what a fail-over has brought back is found by its note.
//!
//! All that is held is of some pair. The list has one place for each, with all notes of it: of a pair there are three
//! and more, and places of their own would take three times the memory.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use fred::types::Value;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use super::{
    Redis,
    reply::{as_array, as_bytes, as_record, write_id},
    script::{self, unavailable},
};
use crate::{
    broker::{BrokerError, Group, Holdings, Member},
    protocol::{NodeId, PairId},
};

/// Of how many pairs the notes are compared in one go.
const PAGE: usize = 256;

/// How long a note that stands for nothing is let alone: what it is to stand for may be on its way.
const DOUBT: Duration = Duration::from_secs(5);
/// How often a node's list is looked through after something went wrong.
const LOOKS: u32 = 3;

/// For so long a note stays when what it stands for was given up. By then the replicas of the primary that took it know.
const STAYS: Duration = Duration::from_secs(2);
/// How often what has stayed for long enough is struck, and how much of that waits; what is too much is found by a look
/// through the list.
const STRIKES: Duration = Duration::from_secs(1);
const MOST_GIVEN_UP: usize = 65_536;

/// What was given up a moment ago: since when, and in whose list it stands.
#[derive(Default)]
pub(super) struct GivenUp(Mutex<VecDeque<(Instant, NodeId, Hold)>>);

impl GivenUp {
    /// By whose list it stands in.
    fn take_due(&self) -> HashMap<NodeId, Vec<Hold>> {
        let mut waiting = self.0.lock();
        let due = waiting.iter().take_while(|(since, ..)| since.elapsed() >= STAYS).count();
        let mut lists: HashMap<_, Vec<_>> = HashMap::new();
        for (_, node, hold) in waiting.drain(..due) {
            lists.entry(node).or_default().push(hold);
        }
        if waiting.is_empty() {
            waiting.shrink_to_fit();
        }
        lists
    }
}

/// Whether a node's list may have notes that stand for nothing. Each call that fails may leave some behind, and each
/// fail-over may bring some back.
#[derive(Default)]
pub(super) struct Doubts(Mutex<Look>);

#[derive(Default)]
struct Look {
    /// How many are still due.
    due: u32,
    last: Option<Instant>,
    /// What stood for nothing at the last one.
    stale: HashSet<Hold>,
}

impl Doubts {
    /// Whether it is time to look, when something is unsettled (again) or not.
    fn is_due(&self, unsettled: bool) -> bool {
        let mut look = self.0.lock();
        if unsettled {
            look.due = LOOKS;
        }
        let due = look.due > 0 && look.last.is_none_or(|last| last.elapsed() >= DOUBT);
        if due {
            look.due -= 1;
            look.last = Some(Instant::now());
        }
        due
    }

    /// What stands for nothing, now and at the look before.
    fn settle(&self, stale: Vec<Hold>) -> Vec<Hold> {
        let mut look = self.0.lock();
        let both = stale.iter().filter(|hold| look.stale.contains(hold)).cloned().collect();
        look.stale = stale.into_iter().collect();
        both
    }
}

/// What a note stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Hold {
    /// A pair, by the nonce of its fence.
    Pair(PairId, u64),
    /// A pair that it is the keeper of, by the nonce of its last fence.
    Kept(PairId, u64),
    /// A member of a group, by its mark.
    Member(Group, Mark, Uuid),
}

/// What tells one joining from the next of the same member.
pub(super) type Mark = u64;

impl Hold {
    /// Whose it is: the members of rooms are pairs.
    fn pair(&self) -> PairId {
        match self {
            Self::Pair(pair, _) | Self::Kept(pair, _) | Self::Member(Group::Siblings(pair), ..) => *pair,
            Self::Member(Group::Room(_), _, id) => PairId::from_uuid(*id),
        }
    }

    /// The note, with how long it is before it, see `lua/noted.lua`: a letter, then nonce or mark, then the room or the
    /// sibling.
    fn note(&self) -> Bytes {
        let (kind, number, rest) = match self {
            Self::Pair(_, nonce) => (b'p', nonce, &[][..]),
            Self::Kept(_, nonce) => (b'k', nonce, &[][..]),
            Self::Member(Group::Room(room), mark, _) => (b'r', mark, room.as_str().as_bytes()),
            Self::Member(Group::Siblings(_), mark, id) => (b's', mark, &id.as_bytes()[..]),
        };
        let long = u8::try_from(1 + 8 + rest.len()).unwrap_or_default();
        [&[long, kind][..], &number.to_be_bytes(), rest].concat().into()
    }

    fn read(pair: PairId, mut note: &[u8]) -> Option<Self> {
        let kind = note.try_get_u8().ok()?;
        let number = note.try_get_u64().ok()?;
        match kind {
            b'p' => Some(Self::Pair(pair, number)),
            b'k' => Some(Self::Kept(pair, number)),
            b'r' => {
                let room = std::str::from_utf8(note).ok()?.parse().ok()?;
                Some(Self::Member(Group::Room(room), number, pair.uuid()))
            }
            b's' => Some(Self::Member(Group::Siblings(pair), number, Uuid::from_slice(note).ok()?)),
            _ => None,
        }
    }

    /// All that is noted of a pair.
    fn read_all(pair: PairId, mut noted: &[u8]) -> Vec<Self> {
        let mut holds = Vec::new();
        while let Some((long, rest)) = noted.split_first() {
            let Some((note, rest)) = rest.split_at_checked(usize::from(*long)) else { break };
            holds.extend(Self::read(pair, note));
            noted = rest;
        }
        holds
    }

    fn args(&self) -> [Value; 2] {
        [write_id(self.pair().uuid()), self.note().into()]
    }
}

/// How a group has a member: id, node, mark, value.
pub(super) fn write_member(member: &Member, mark: Mark) -> Bytes {
    let Member { id, node, value } = member;
    [&id.as_bytes()[..], node.uuid().as_bytes(), &mark.to_be_bytes(), value].concat().into()
}

/// The reverse of [`write_member`].
pub(super) fn read_member(mut bytes: Bytes) -> Result<(Member, Mark), BrokerError> {
    if bytes.len() < 16 + 16 + 8 {
        return Err(BrokerError::Garbled("not a member".into()));
    }
    let (id, node, mark) = (bytes.get_u128(), bytes.get_u128(), bytes.get_u64());
    let node = NodeId::from_uuid(Uuid::from_u128(node));
    Ok((Member { id: Uuid::from_u128(id), node, value: bytes }, mark))
}

/// A walk through a node's list.
struct Walk {
    node: NodeId,
    /// Where it goes on; `None` at the end.
    cursor: Option<Bytes>,
    /// Redis may show a place twice when the list grows or shrinks meanwhile.
    seen: HashSet<PairId>,
}

impl Walk {
    fn new(node: NodeId) -> Self {
        Self { node, cursor: Some(Bytes::from_static(b"0")), seen: HashSet::new() }
    }

    /// The next notes; `None` behind the last.
    async fn next(&mut self, redis: &Redis) -> Result<Option<Vec<Hold>>, BrokerError> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        let garbled = || BrokerError::Garbled("not a page of a list".into());
        let key = redis.keys.holds(self.node);
        let args = vec![key.as_str().into(), cursor.into(), "COUNT".into(), PAGE.to_string().into()];
        let reply = redis.commands.send(&key, "HSCAN", args).await.map_err(unavailable)?;
        let [cursor, page] = <[Value; 2]>::try_from(as_array(reply)?).map_err(|_| garbled())?;
        self.cursor = Some(as_bytes(cursor)?).filter(|cursor| cursor != "0");
        let (mut page, mut holds) = (as_array(page)?.into_iter(), Vec::new());
        while let (Some(pair), Some(noted)) = (page.next(), page.next()) {
            let pair = PairId::from_uuid(Uuid::from_slice(&as_bytes(pair)?).map_err(|_| garbled())?);
            if self.seen.insert(pair) {
                holds.extend(Hold::read_all(pair, &as_bytes(noted)?));
            }
        }
        Ok(Some(holds))
    }
}

impl Redis {
    /// Takes something by a script, and notes that before.
    pub(super) async fn take(
        &self,
        (node, hold): (NodeId, &Hold),
        script: &script::Script,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<Value, BrokerError> {
        script::NOTE.call(&self.commands, vec![self.keys.holds(node)], hold.args().into()).await?;
        script.call(&self.commands, keys, args).await
    }

    /// Something was given up: its note goes in a moment. It is so whether or not that works: a note too many is found
    /// by its readers.
    pub(super) fn strike(&self, node: NodeId, hold: Hold) {
        let mut given_up = self.given_up.0.lock();
        if given_up.len() < MOST_GIVEN_UP {
            given_up.push_back((Instant::now(), node, hold));
        } else {
            self.doubt();
        }
    }

    /// A note may have been left that stands for nothing: a later look at the whole list finds it. It is not struck by
    /// itself where the same may be noted again at any moment, between a look and the strike.
    pub(super) fn doubt(&self) {
        self.shared.board.unsettle();
    }

    /// Strikes what has been given up, until the end.
    pub(super) async fn keep_striking(self: Arc<Self>) {
        let mut tick = interval(STRIKES);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.stop.run_until_cancelled(tick.tick()).await.is_some() {
            for (node, holds) in self.given_up.take_due() {
                for some in holds.chunks(PAGE) {
                    // What can't be looked up may have come back; its note stays for the look that follows a failure.
                    if let Ok((_, stale)) = self.compare(node, some.to_vec()).await {
                        self.strike_all(node, &stale).await;
                    }
                }
            }
        }
    }

    /// Strikes what calls that failed have left in a node's own list, and what a fail-over has brought back there.
    pub(super) async fn settle_doubts(&self, node: NodeId) -> Result<(), BrokerError> {
        if self.doubts.is_due(self.shared.board.take_unsettled()) {
            let stale = self.doubts.settle(self.stale_holds(node).await?);
            self.strike_all(node, &stale).await;
        }
        Ok(())
    }

    /// Several at once.
    pub(super) async fn strike_all(&self, node: NodeId, holds: &[Hold]) {
        for some in holds.chunks(PAGE) {
            let args = some.iter().flat_map(Hold::args).collect();
            if let Err(error) = script::STRIKE.call(&self.commands, vec![self.keys.holds(node)], args).await {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(%node, error, "notes too many stay in a node's list");
            }
        }
    }

    /// At most `limit` of each kind. Of a kind of which there are so many, no more is looked up, however long the list is.
    pub(super) async fn read_holds(&self, node: NodeId, limit: usize) -> Result<Holdings, BrokerError> {
        let (mut all, mut walk) = (Holdings::default(), Walk::new(node));
        while all.pairs.len().min(all.kept.len()).min(all.members.len()) < limit {
            let Some(mut holds) = walk.next(self).await? else { break };
            holds.retain(|hold| match hold {
                Hold::Pair(..) => all.pairs.len() < limit,
                Hold::Kept(..) => all.kept.len() < limit,
                Hold::Member(..) => all.members.len() < limit,
            });
            let (standing, _) = self.compare(node, holds).await?;
            all.pairs.extend(standing.pairs);
            all.kept.extend(standing.kept);
            all.members.extend(standing.members);
        }
        all.pairs.truncate(limit);
        all.kept.truncate(limit);
        all.members.truncate(limit);
        Ok(all)
    }

    /// What in a node's list stands for nothing.
    pub(super) async fn stale_holds(&self, node: NodeId) -> Result<Vec<Hold>, BrokerError> {
        let (mut stale, mut walk) = (Vec::new(), Walk::new(node));
        while let Some(holds) = walk.next(self).await? {
            stale.extend(self.compare(node, holds).await?.1);
        }
        Ok(stale)
    }

    /// What stands, and what stands for nothing (any more), by one round trip.
    async fn compare(&self, node: NodeId, holds: Vec<Hold>) -> Result<(Holdings, Vec<Hold>), BrokerError> {
        let ask = |hold: &Hold| match hold {
            Hold::Pair(pair, _) | Hold::Kept(pair, _) => {
                let key = self.keys.pair(*pair);
                (key.clone(), "GET", vec![key.into()])
            }
            Hold::Member(group, _, id) => {
                let key = self.keys.group(group).members;
                let from = Bytes::from([&b"["[..], id.as_bytes()].concat());
                let args = [key.as_str().into(), from.into()].into_iter();
                (key, "ZRANGEBYLEX", args.chain(["+", "LIMIT", "0", "1"].map(Value::from)).collect())
            }
        };
        let asked: Vec<_> = holds.iter().map(ask).collect();
        let replies = self.commands.send_all(asked).await.map_err(unavailable)?;
        let (mut standing, mut stale) = (Holdings::default(), Vec::new());
        for (hold, reply) in holds.into_iter().zip(replies) {
            match &hold {
                Hold::Pair(pair, nonce) | Hold::Kept(pair, nonce) => {
                    let record = as_record(reply).ok().flatten().filter(|record| record.fence.nonce == *nonce);
                    match (&hold, record) {
                        (Hold::Pair(..), Some(record)) if record.holder == Some(node) => {
                            standing.pairs.push((*pair, *nonce));
                        }
                        (Hold::Kept(..), Some(record)) if record.keeper == Some(node) => standing.kept.push(*pair),
                        _ => stale.push(hold),
                    }
                }
                Hold::Member(group, mark, id) => {
                    let first = as_array(reply).ok().and_then(|found| found.into_iter().next());
                    match first.and_then(Value::into_bytes).and_then(|member| read_member(member).ok()) {
                        Some((member, is)) if member.id == *id && member.node == node && is == *mark => {
                            standing.members.push((group.clone(), member));
                        }
                        _ => stale.push(hold),
                    }
                }
            }
        }
        Ok((standing, stale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read() {
        let pair = PairId::fresh();
        let holds = [
            Hold::Pair(pair, u64::MAX),
            Hold::Kept(pair, 0),
            Hold::Member(Group::Room("a/~b".parse().unwrap()), 7, pair.uuid()),
            Hold::Member(Group::Room("~".repeat(128).parse().unwrap()), 7, pair.uuid()),
            Hold::Member(Group::Siblings(pair), 9, Uuid::now_v7()),
        ];
        assert!(holds.iter().all(|hold| hold.pair() == pair));
        let noted = holds.iter().map(Hold::note).collect::<Vec<_>>().concat();
        assert_eq!(Hold::read_all(pair, &noted), holds);
        assert_eq!(Hold::read_all(pair, &noted[..noted.len() - 1]), holds[..4]);
        let member = Member { id: pair.uuid(), node: NodeId::fresh(), value: Bytes::from_static(b"x y") };
        let written = write_member(&member, 5);
        assert_eq!(read_member(written.clone()).unwrap(), (member, 5));
        assert!(read_member(written.slice(..39)).is_err());
    }
}
