//! Reading what Redis replies, and writing what it is told.

use std::{str::FromStr, time::Duration};

use bytes::Bytes;
use fred::types::Value;

use crate::{
    broker::{BrokerError, Record},
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

/// A record's epoch, nonce, holder, ended, facts; `None` when there is none.
pub(super) fn as_record(values: Vec<Value>) -> Result<Option<Record>, BrokerError> {
    let [epoch, nonce, holder, ended, facts] =
        <[Value; 5]>::try_from(values).map_err(|_| garbled("a record is not five fields"))?;
    if epoch.is_null() {
        return Ok(None);
    }
    let fence = Fence { epoch: as_parsed(&epoch)?, nonce: as_parsed(&nonce)? };
    let holder = if holder.is_null() { None } else { Some(as_parsed::<NodeId>(&holder)?) };
    Ok(Some(Record { facts: as_bytes(facts)?, fence, holder, ended: !ended.is_null() }))
}

/// A time to live as Redis takes it: at least a millisecond (nothing would delete at once), at most a century (more
/// would overflow its clock).
pub(super) fn millis(time: Duration) -> String {
    time.as_millis().clamp(1, 100 * 365 * 24 * 60 * 60 * 1_000).to_string()
}
