//! Reading what Redis replies, and writing what it is told.

use std::{str::FromStr, time::Duration};

use bytes::Bytes;
use fred::types::Value;
use uuid::Uuid;

use crate::{
    broker::{Appended, BrokerError, Census, Entry, Page, Record, Rule, Step},
    protocol::{Fence, NodeId, Position},
};

fn garbled(what: &str) -> BrokerError {
    BrokerError::Garbled(what.to_owned())
}

pub(super) fn as_array(value: Value) -> Result<Vec<Value>, BrokerError> {
    if let Value::Array(values) = value { Ok(values) } else { Err(garbled("not an array")) }
}

pub(super) fn as_integer(value: &Value) -> Result<i64, BrokerError> {
    value.as_i64().ok_or_else(|| garbled("not an integer"))
}

pub(super) fn as_bytes(value: Value) -> Result<Bytes, BrokerError> {
    value.into_bytes().ok_or_else(|| garbled("not a string"))
}

/// Text that a value's `FromStr` understands.
pub(super) fn as_parsed<T: FromStr>(value: &Value) -> Result<T, BrokerError> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| garbled(std::any::type_name::<T>()))
}

/// A number, and what tells it from others: a position's offset and nonce, a fence's epoch and nonce.
fn two_numbers(bytes: &[u8]) -> Option<(u64, u64)> {
    let (one, two) = bytes.split_at_checked(8)?;
    Some((u64::from_be_bytes(one.try_into().ok()?), u64::from_be_bytes(two.try_into().ok()?)))
}

fn write_two(one: u64, two: u64) -> Value {
    Bytes::copy_from_slice(&[one.to_be_bytes(), two.to_be_bytes()].concat()).into()
}

/// As the scripts take them, see `lua/entries.lua`.
pub(super) fn write_position(position: Position) -> Value {
    write_two(position.offset, position.nonce)
}

/// As the scripts take them, see `lua/record.lua`.
pub(super) fn write_fence(fence: Fence) -> Value {
    write_two(fence.epoch, fence.nonce)
}

/// A nonce or a mark: 8 bytes.
pub(super) fn write_number(number: u64) -> Value {
    Bytes::copy_from_slice(&number.to_be_bytes()).into()
}

/// An id as 16 bytes.
pub(super) fn write_id(id: Uuid) -> Value {
    Bytes::copy_from_slice(id.as_bytes()).into()
}

fn read_position(bytes: &[u8]) -> Option<Position> {
    two_numbers(bytes).map(|(offset, nonce)| Position { offset, nonce })
}

pub(super) fn as_id(value: Value) -> Result<Uuid, BrokerError> {
    Uuid::from_slice(&as_bytes(value)?).map_err(|_| garbled("not an id"))
}

pub(super) fn as_position(value: &Value) -> Result<Position, BrokerError> {
    value.as_bytes().and_then(read_position).ok_or_else(|| garbled("not a position"))
}

/// How long the front of an entry is, without the marks: the time, and how long they are. See `lua/entries.lua`.
const FRONT: usize = 8 + 1;

/// An entry, as histories keep it.
fn as_entry(bytes: &Bytes) -> Option<Entry> {
    let front = FRONT + usize::from(*bytes.get(FRONT - 1)?);
    let (position, previous, payload) = read_told(bytes.get(front..)?)?;
    Some(Entry { position, previous, payload: bytes.slice(front + payload..) })
}

/// Position, previous position, and where the payload begins.
pub(super) fn read_told(bytes: &[u8]) -> Option<(Position, Position, usize)> {
    let (position, rest) = bytes.split_at_checked(16)?;
    let position = read_position(position)?;
    match rest.split_first()? {
        (0, _) => Some((position, Position::START, 16 + 1)),
        (8, rest) => {
            // Offsets have no holes.
            let (offset, nonce) = (position.offset.checked_sub(1)?, u64::from_be_bytes(*rest.first_chunk()?));
            Some((position, Position { offset, nonce }, 16 + 1 + 8))
        }
        _ => None,
    }
}

/// Entries, as histories keep them. Their payloads stay where they are.
pub(super) fn as_entries(value: Value) -> Result<Vec<Entry>, BrokerError> {
    let entry = |value| as_entry(&as_bytes(value)?).ok_or_else(|| garbled("not an entry"));
    as_array(value)?.into_iter().map(entry).collect()
}

/// One look at a history, see `lua/read.lua`.
pub(super) fn as_page(reply: Value) -> Result<Page, BrokerError> {
    let [known, head, oldest, previous, entries] =
        <[Value; 5]>::try_from(as_array(reply)?).map_err(|_| garbled("a page is not five values"))?;
    let head = as_position(&head)?;
    let oldest = (as_position(&oldest)?, as_position(&previous)?);
    Ok(Page {
        entries: as_entries(entries)?,
        known: as_integer(&known)? == 1,
        oldest: (head != Position::START).then_some(oldest),
        head,
    })
}

/// How a record begins: fence, state, whether it was heard of, node. See `lua/record.lua`.
const RECORD: usize = 16 + 1 + 1 + 16;

/// A record as it is kept.
pub(super) fn write_record(record: &Record) -> Bytes {
    let Record { facts, fence, holder, keeper, heard, ended } = record;
    let is = if *ended {
        b'e'
    } else if holder.is_some() {
        b'h'
    } else {
        b'k'
    };
    let node = holder.or(*keeper).map(NodeId::uuid).unwrap_or_default();
    let (epoch, nonce) = (fence.epoch.to_be_bytes(), fence.nonce.to_be_bytes());
    [&epoch[..], &nonce, &[is, if *heard { b'1' } else { b'0' }], node.as_bytes(), facts].concat().into()
}

/// The reverse of [`write_record`]; `None` when there is none.
pub(super) fn as_record(value: Value) -> Result<Option<Record>, BrokerError> {
    if value.is_null() {
        return Ok(None);
    }
    let facts = as_bytes(value)?;
    let read = |bytes: &[u8]| {
        let (fence, rest) = bytes.split_at_checked(16)?;
        let (epoch, nonce) = two_numbers(fence)?;
        let node = NodeId::from_uuid(Uuid::from_slice(rest.get(2..18)?).ok()?);
        Some((Fence { epoch, nonce }, rest[0], rest[1] == b'1', node))
    };
    let (fence, is, heard, node) = read(&facts).ok_or_else(|| garbled("not a record"))?;
    Ok(Some(Record {
        facts: facts.slice(RECORD..),
        fence,
        holder: (is == b'h').then_some(node),
        keeper: (is == b'k').then_some(node),
        heard,
        ended: is == b'e',
    }))
}

/// Version and value of a rule; `None` when there is none.
pub(super) fn as_rule(fields: Value) -> Result<Option<Rule>, BrokerError> {
    let fields = <[Value; 2]>::try_from(as_array(fields)?).map_err(|_| garbled("a rule is not two fields"))?;
    let [version, value] = fields;
    if version.is_null() {
        return Ok(None);
    }
    Ok(Some(Rule { version: as_parsed(&version)?, value: as_bytes(value)? }))
}

/// How many members a group has, its charter, its rule, and the newest place in its talk.
pub(super) fn as_census(reply: Value) -> Result<Census, BrokerError> {
    let [members, charter, rule, talk, untold] =
        <[Value; 5]>::try_from(as_array(reply)?).map_err(|_| garbled("a census is not five values"))?;
    let members = members.as_u64().ok_or_else(|| garbled("not a number of members"))?;
    // One that is empty is not kept.
    let charter = if charter.is_null() { (members > 0).then(Bytes::new) } else { Some(as_bytes(charter)?) };
    Ok(Census { charter, members, rule: as_rule(rule)?, talk: as_position(&talk)?, untold: as_integer(&untold)? > 0 })
}

/// What came of an append: 0 nothing to append to, 1 refused, the head alone, or the last entry and how many nodes it is on
/// its way to.
pub(super) fn as_appended(reply: Value) -> Result<Appended, BrokerError> {
    let reply = match reply {
        Value::Integer(0) => return Ok(Appended::Missing),
        Value::Integer(_) => return Ok(Appended::Refused),
        reply => as_array(reply)?,
    };
    match &reply[..] {
        [head] => as_position(head).map(Appended::Behind),
        [last, reached] => Ok(Appended::At(as_position(last)?, as_integer(reached)?.unsigned_abs())),
        _ => Err(garbled("not the outcome of an append")),
    }
}

/// What came of a step: 0 no record, 1 refused, 2 taken, and who had the pair before where that is told.
pub(super) fn as_step(reply: Value) -> Result<Step<Option<NodeId>>, BrokerError> {
    let mut reply = as_array(reply)?.into_iter();
    match (reply.next().and_then(|code| code.as_i64()), reply.next()) {
        (Some(0), _) => Ok(Step::Missing),
        (Some(1), _) => Ok(Step::Refused),
        (Some(2), Some(before)) => as_id(before).map(|node| Step::Taken(Some(NodeId::from_uuid(node)))),
        (Some(2), _) => Ok(Step::Taken(None)),
        _ => Err(garbled("not the outcome of a step")),
    }
}

/// A time to live as Redis takes it: at least a millisecond (nothing would delete at once), at most a century (more
/// would overflow its clock).
pub(super) fn millis(time: Duration) -> String {
    time.as_millis().clamp(1, 100 * 365 * 24 * 60 * 60 * 1_000).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(entry: &[u8]) -> Result<Vec<Entry>, BrokerError> {
        as_entries(Value::Array(vec![Bytes::copy_from_slice(entry).into()]))
    }

    #[test]
    fn entries_are_taken_apart() {
        let places = [&[2, u64::MAX].map(u64::to_be_bytes).concat()[..], &[8], &7u64.to_be_bytes()].concat();
        let entry = [b"\0\0\x01\x9a\0\0\0\0\x04mark", &places[..], b"a b"].concat();
        let [Entry { position, previous, payload }] = &page(&entry).unwrap()[..] else { panic!("there is one") };
        assert_eq!(*position, Position { offset: 2, nonce: u64::MAX });
        assert_eq!((*previous, &payload[..]), (Position { offset: 1, nonce: 7 }, b"a b".as_slice()));
        for end in 0..entry.len() - 3 {
            assert!(page(&entry[..end]).is_err(), "{end}");
        }
        let first = [&entry[..29], &[0], b"a b"].concat();
        let [Entry { position: Position { offset: 2, .. }, previous: Position::START, payload }] =
            &page(&first).unwrap()[..]
        else {
            panic!("there is one")
        };
        assert_eq!(payload, "a b");
        let forged = [&entry[..29], &[7], &entry[30..]].concat();
        assert!(page(&forged).is_err());
        assert_eq!(as_entries(Value::Array(Vec::new())).unwrap(), []);
        assert!(as_entries("x".into()).is_err());
    }

    #[test]
    fn records_are_taken_apart() {
        let (node, facts) = (NodeId::fresh(), Bytes::from_static(b"facts"));
        let fence = Fence { epoch: 3, nonce: u64::MAX };
        let kept = Record { facts, fence, holder: None, keeper: Some(node), heard: true, ended: false };
        let held = Record { holder: Some(node), keeper: None, heard: false, ..kept.clone() };
        let ended = Record { keeper: None, ended: true, ..kept.clone() };
        for record in [kept, held, ended] {
            let written = write_record(&record);
            assert_eq!(as_record(written.clone().into()).unwrap(), Some(record));
            assert!(as_record(written.slice(..RECORD).into()).unwrap().is_some_and(|read| read.facts.is_empty()));
            for end in 0..RECORD {
                assert!(as_record(written.slice(..end).into()).is_err(), "{end}");
            }
        }
        assert_eq!(as_record(Value::Null).unwrap(), None);
    }
}
