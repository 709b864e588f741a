//! What a node is answerable for, kept so that another can clean up after it.
//!
//! Records and groups live in other slots than a node's list of them, so the two can't change in one step. The list
//! errs on the safe side: an entry is added before what it stands for is taken, and removed after it is given up, and
//! whoever reads it compares it with what it stands for. Each entry carries the claim's nonce, or the joining's mark:
//! so an old entry's removal can't hit the new one of the same thing.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use fred::types::Value;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Redis,
    reply::{as_array, as_parsed},
    script::{self, unavailable},
};
use crate::{
    broker::{BrokerError, Group, Holdings, Member},
    protocol::{NodeId, PairId},
};

/// How many entries are compared in one go.
const PAGE: usize = 256;

/// How long an entry that stands for nothing is let alone: what it is to stand for may be on its way.
const DOUBT: Duration = Duration::from_secs(5);
/// How often a node's list is looked through after something went wrong.
const LOOKS: u32 = 3;

/// Whether a node's list may have entries that stand for nothing. Each call that fails may leave some behind.
#[derive(Default)]
pub(super) struct Doubts(Mutex<Look>);

#[derive(Default)]
struct Look {
    /// How many are still due.
    due: u32,
    last: Option<Instant>,
    /// What stood for nothing at the last one.
    stale: HashSet<String>,
}

impl Doubts {
    /// Whether it is time to look, when something has failed (again) or not.
    fn is_due(&self, failed: bool) -> bool {
        let mut look = self.0.lock();
        if failed {
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
    fn settle(&self, stale: Vec<String>) -> Vec<String> {
        let mut look = self.0.lock();
        let both = stale.iter().filter(|entry| look.stale.contains(*entry)).cloned().collect();
        look.stale = stale.into_iter().collect();
        both
    }
}

/// One entry of a node's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hold {
    /// A pair, by the nonce of its fence.
    Pair(PairId, u64),
    /// A pair that it is the keeper of, by the nonce of its last fence.
    Kept(PairId, u64),
    /// A member of a group, by its mark.
    Member(Group, Mark, String),
}

/// What tells one joining from the next of the same member: 16 hexadecimal digits.
pub(super) type Mark = String;

impl Hold {
    fn write(&self) -> String {
        match self {
            Self::Pair(pair, nonce) => format!("p {pair} {nonce}"),
            Self::Kept(pair, nonce) => format!("k {pair} {nonce}"),
            Self::Member(Group::Room(room), mark, id) => format!("r {room} {mark} {id}"),
            Self::Member(Group::Siblings(pair), mark, id) => format!("s {pair} {mark} {id}"),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(' ')?;
        let (name, rest) = rest.split_once(' ')?;
        match kind {
            "p" => return Some(Self::Pair(name.parse().ok()?, rest.parse().ok()?)),
            "k" => return Some(Self::Kept(name.parse().ok()?, rest.parse().ok()?)),
            _ => {}
        }
        let (mark, id) = rest.split_once(' ')?;
        let group = match kind {
            "r" => Group::Room(name.parse().ok()?),
            "s" => Group::Siblings(name.parse().ok()?),
            _ => return None,
        };
        Some(Self::Member(group, mark.to_owned(), id.to_owned()))
    }
}

/// What a group's HASH says of a member: node, mark, value.
pub(super) fn write_member(node: NodeId, mark: &Mark, value: &Bytes) -> Bytes {
    [node.to_string().as_bytes(), mark.as_bytes(), value].concat().into()
}

/// The reverse of [`write_member`].
pub(super) fn read_member(mut bytes: Bytes) -> Result<(NodeId, Mark, Bytes), BrokerError> {
    let garbled = || BrokerError::Garbled("not a member".into());
    // "node_" and 26 characters, then the mark.
    if bytes.len() < 31 + 16 {
        return Err(garbled());
    }
    let text = |bytes: &Bytes| std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| garbled());
    let node = text(&bytes.split_to(31))?.parse().map_err(|_| garbled())?;
    let mark = text(&bytes.split_to(16))?;
    Ok((node, mark, bytes))
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
        self.commands.zadd(self.keys.holds(node), hold.write()).await.map_err(unavailable)?;
        script.call(&self.commands, keys, args).await
    }

    /// After something was given up. It is so whether or not this works: an entry too many is found by its readers.
    pub(super) async fn strike(&self, node: NodeId, hold: &Hold) {
        self.strike_all(node, vec![hold.write()]).await;
    }

    /// Strikes what calls that failed have left in a node's own list.
    pub(super) async fn settle_doubts(&self, node: NodeId) -> Result<(), BrokerError> {
        if self.doubts.is_due(self.commands.take_failed()) {
            let stale = self.doubts.settle(self.stale_holds(node).await?);
            self.strike_all(node, stale).await;
        }
        Ok(())
    }

    /// Several at once.
    pub(super) async fn strike_all(&self, node: NodeId, entries: Vec<String>) {
        for some in entries.chunks(PAGE) {
            if let Err(error) = self.commands.zrem(self.keys.holds(node), some.to_vec()).await {
                tracing::debug!(%node, %error, "entries too many stay in a node's list");
            }
        }
    }

    pub(super) async fn read_holds(&self, node: NodeId, limit: usize) -> Result<Holdings, BrokerError> {
        let mut holdings = Holdings::default();
        self.each_hold(node, ["[p ", "(p!"], limit, |hold| {
            if let Hold::Pair(pair, nonce) = hold {
                holdings.pairs.push((pair, nonce));
            }
        })
        .await?;
        self.each_hold(node, ["[k ", "(k!"], limit, |hold| {
            if let Hold::Kept(pair, _) = hold {
                holdings.kept.push(pair);
            }
        })
        .await?;
        let mut members = Vec::new();
        self.each_hold(node, ["[r ", "(s!"], limit, |hold| {
            if let Hold::Member(group, _, id) = hold {
                members.push((group, id));
            }
        })
        .await?;
        for (group, id) in members {
            // In the order in which they were found; one that has moved on meanwhile is another's to answer for.
            let was = self.commands.hget(self.keys.group(&group).who, &id).await.map_err(unavailable)?;
            let was = was.into_bytes().and_then(|bytes| read_member(bytes).ok());
            if let Some((on, _, value)) = was.filter(|(on, ..)| *on == node) {
                holdings.members.push((group, Member { id, node: on, value }));
            }
        }
        Ok(holdings)
    }

    /// The entries of a node's list that stand for nothing.
    pub(super) async fn stale_holds(&self, node: NodeId) -> Result<Vec<String>, BrokerError> {
        let (mut from, mut stale) = ("-".to_owned(), Vec::new());
        loop {
            let entries = self.hold_page(node, &from, "+").await?;
            let Some(last) = entries.last() else { return Ok(stale) };
            from = format!("({last}");
            let holds = entries.iter().filter_map(|entry| Hold::read(entry)).collect();
            let standing: Vec<_> = self.compare(node, holds).await?.iter().map(Hold::write).collect();
            stale.extend(entries.into_iter().filter(|entry| !standing.contains(entry)));
        }
    }

    async fn hold_page(&self, node: NodeId, from: &str, to: &str) -> Result<Vec<String>, BrokerError> {
        let args: Vec<Value> = vec![from.into(), to.into(), PAGE.to_string().into()];
        let reply = script::PAGE.call(&self.commands, vec![self.keys.holds(node)], args).await?;
        Ok(as_array(reply)?.into_iter().skip(1).filter_map(Value::into_string).collect())
    }

    /// Calls `found` for the first `limit` entries in a part of the list that stand for something.
    async fn each_hold(
        &self,
        node: NodeId,
        [from, to]: [&str; 2],
        limit: usize,
        mut found: impl FnMut(Hold) + Send,
    ) -> Result<(), BrokerError> {
        let (mut from, mut left) = (from.to_owned(), limit);
        while left > 0 {
            let entries = self.hold_page(node, &from, to).await?;
            let Some(last) = entries.last() else { return Ok(()) };
            from = format!("({last}");
            let holds = entries.iter().filter_map(|entry| Hold::read(entry)).collect();
            for hold in self.compare(node, holds).await?.into_iter().take(left) {
                found(hold);
                left -= 1;
            }
            if entries.len() < PAGE {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Those entries that stand for something, by one round trip.
    async fn compare(&self, node: NodeId, holds: Vec<Hold>) -> Result<Vec<Hold>, BrokerError> {
        if holds.is_empty() {
            return Ok(holds);
        }
        let ask = |hold: &Hold| match hold {
            Hold::Pair(pair, _) | Hold::Kept(pair, _) => {
                let whose = if matches!(hold, Hold::Pair(..)) { "holder" } else { "keeper" };
                let key = self.keys.pair(*pair);
                (key.clone(), "HMGET", vec![key.into(), "nonce".into(), whose.into()])
            }
            Hold::Member(group, _, id) => {
                let key = self.keys.group(group).who;
                (key.clone(), "HGET", vec![key.into(), id.as_str().into()])
            }
        };
        let asked: Vec<_> = holds.iter().map(ask).collect();
        let replies = self.commands.send_all(asked).await.map_err(unavailable)?;
        let stands = |hold: &Hold, reply: Value| match hold {
            Hold::Pair(_, nonce) | Hold::Kept(_, nonce) => as_array(reply).is_ok_and(|fields| {
                matches!(fields.as_slice(), [is, whose]
                    if as_parsed(is).is_ok_and(|is: u64| is == *nonce)
                        && as_parsed(whose).is_ok_and(|whose: NodeId| whose == node))
            }),
            Hold::Member(_, mark, _) => reply
                .into_bytes()
                .and_then(|bytes| read_member(bytes).ok())
                .is_some_and(|(on, is, _)| on == node && is == *mark),
        };
        Ok(holds.into_iter().zip(replies).filter_map(|(hold, reply)| stands(&hold, reply).then_some(hold)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let pair = PairId::fresh();
        for hold in [
            Hold::Pair(pair, u64::MAX),
            Hold::Kept(pair, 0),
            Hold::Member(Group::Room("a/~b".parse().unwrap()), "0".repeat(16), pair.to_string()),
            Hold::Member(Group::Siblings(pair), "f".repeat(16), "sib_1".into()),
        ] {
            assert_eq!(Hold::read(&hold.write()), Some(hold));
        }
        let node = NodeId::fresh();
        let member = write_member(node, &"1".repeat(16), &Bytes::from_static(b"x y"));
        assert_eq!(read_member(member).unwrap(), (node, "1".repeat(16), Bytes::from_static(b"x y")));
        assert!(read_member(Bytes::from_static(b"short")).is_err());
    }
}
