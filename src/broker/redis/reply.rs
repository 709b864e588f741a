//! Reading what Redis replies, and writing what it is told.

use std::{str::FromStr, time::Duration};

use bytes::Bytes;
use fred::types::Value;

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

pub(super) fn as_position(value: &Value) -> Result<Position, BrokerError> {
    as_parsed(value)
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
    let mut at = 0;
    let mut number = |end: u8| {
        let (mut number, begin) = (0u64, at);
        loop {
            let byte = *bytes.get(at)?;
            at += 1;
            match byte {
                b'0'..=b'9' => number = number.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?,
                _ if byte == end && at > begin + 1 => return Some(number),
                _ => return None,
            }
        }
    };
    let position = Position { offset: number(b'-')?, nonce: number(b' ')? };
    let previous = Position { offset: number(b'-')?, nonce: number(b' ')? };
    Some((position, previous, at))
}

/// Many entries, packed into one text. Their payloads stay where they are.
pub(super) fn as_entries(value: Value) -> Result<Vec<Entry>, BrokerError> {
    let bytes = as_bytes(value)?;
    let entries: Vec<&serde_bytes::Bytes> = rmp_serde::from_slice(&bytes).map_err(|_| garbled("not entries"))?;
    let entries: Option<_> = entries.into_iter().map(|entry| as_entry(&bytes.slice_ref(entry))).collect();
    entries.ok_or_else(|| garbled("not an entry"))
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

/// A record's epoch, nonce, holder, keeper, heard, ended, facts; `None` when there is none.
pub(super) fn as_record(values: Vec<Value>) -> Result<Option<Record>, BrokerError> {
    let [epoch, nonce, holder, keeper, heard, ended, facts] =
        <[Value; 7]>::try_from(values).map_err(|_| garbled("a record is not seven fields"))?;
    if epoch.is_null() {
        return Ok(None);
    }
    let fence = Fence { epoch: as_parsed(&epoch)?, nonce: as_parsed(&nonce)? };
    let node = |value: &Value| if value.is_null() { Ok(None) } else { as_parsed::<NodeId>(value).map(Some) };
    let (holder, keeper) = (node(&holder)?, node(&keeper)?);
    let (heard, ended) = (!heard.is_null(), !ended.is_null());
    Ok(Some(Record { facts: as_bytes(facts)?, fence, holder, keeper, heard, ended }))
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
        (Some(2), Some(before)) if !before.is_null() => as_parsed(&before).map(|node| Step::Taken(Some(node))),
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
        let packed = rmp_serde::to_vec(&[serde_bytes::Bytes::new(entry)]).expect("it can be packed");
        as_entries(Bytes::from(packed).into())
    }

    #[test]
    fn entries_are_taken_apart() {
        let entry = b"\0\0\x01\x9a\0\0\0\0\x04mark2-18446744073709551615 1-7 a b";
        let [Entry { position, previous, payload }] = &page(entry).unwrap()[..] else { panic!("one was packed") };
        assert_eq!(*position, Position { offset: 2, nonce: u64::MAX });
        assert_eq!((*previous, &payload[..]), (Position { offset: 1, nonce: 7 }, b"a b".as_slice()));
        for forged in ["1-2 1-1", "1-2", "-2 1-1 ", "1- 1-1 ", "1-18446744073709551616 1-1 ", "1-2 x-1 ", "1-2  1-1 "]
        {
            let forged = [&entry[..13], forged.as_bytes()].concat();
            assert!(page(&forged).is_err(), "{forged:?}");
        }
        for end in 0..36 {
            assert!(page(&entry[..end]).is_err(), "{end}");
        }
        assert_eq!(as_entries(Bytes::from_static(&[0x90]).into()).unwrap(), []);
        assert!(as_entries("x".into()).is_err());
    }
}
