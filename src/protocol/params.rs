//! What commands take, and what of it is refused.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Failure, Fault, FrameKind, OneOrMany, PairId, Payload, Rate, RoomName, Side, Slow, Watching};

/// A direction of the pipe, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the client.
    In,
    /// To the client.
    Out,
    /// Both.
    Both,
}

/// What becomes of frames while a direction is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PausePolicy {
    /// They wait in the bounded queue.
    Buffer,
    /// They are dropped and counted.
    Drop,
    /// The client's socket is not read: TCP holds its sender back. Towards the client, the same as `buffer`.
    Hold,
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $kind:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* })*
    };
}

params! {
    /// No params.
    NoParams {}
    /// A ticket for one side of the pair.
    TicketParams {
        /// The side that it opens.
        side: Side,
        /// The caller's grants or fewer; the caller's when left out.
        #[serde(default)] grants: Option<Vec<String>>,
        /// Seconds that it lives.
        #[serde(default)] ttl: Option<u64>,
    }
    /// Why.
    ReasonParams {
        /// A short phrase for the close frame.
        #[serde(default)] reason: Option<String>,
    }
    /// One frame, as text or as base64; in MessagePack also as binary data.
    PayloadParams {
        /// A text frame.
        #[serde(default)] text: Option<String>,
        /// A binary frame.
        #[serde(default)] base64: Option<String>,
        /// A binary frame, in MessagePack.
        #[serde(default)] binary: Option<Binary>,
    }
    /// Binary data as the MessagePack reader hands it on.
    Binary {
        /// The bytes.
        base64: String,
    }
    /// Another room.
    MoveParams {
        /// Its name.
        #[schemars(with = "String")]
        room: RoomName,
    }
    /// Stop frames.
    PauseParams {
        /// Which.
        direction: Direction,
        /// What becomes of them.
        #[serde(default = "buffer")] policy: PausePolicy,
    }
    /// Let frames go on.
    ResumeParams {
        /// Which.
        direction: Direction,
    }
    /// Settings to change; what is left out stays.
    SetParams {
        /// Bound of the queue towards the client, in bytes.
        #[serde(default)] queue_bytes: Option<usize>,
        /// What happens when it is full.
        #[serde(default)] slow: Option<Slow>,
        /// How much the client may send; null lifts the limit.
        #[serde(default, deserialize_with = "said")]
        #[schemars(with = "Option<Rate>")]
        rate: Option<Option<Rate>>,
        /// Seconds between pings.
        #[serde(default)] ping: Option<u64>,
        /// The pair's meta data, replaced as a whole.
        #[serde(default)] meta: Option<Map<String, Value>>,
    }
    /// Close the client socket.
    CloseParams {
        /// 1000, or 4000 to 4999.
        #[serde(default)] code: Option<u16>,
        /// A short phrase, at most 123 bytes.
        #[serde(default)] reason: Option<String>,
    }
    /// Close a member's client socket.
    KickParams {
        /// Whose.
        #[schemars(with = "String")]
        pair: PairId,
        /// 1000, or 4000 to 4999; 3503 when left out.
        #[serde(default)] code: Option<u16>,
        /// A short phrase, at most 123 bytes.
        #[serde(default)] reason: Option<String>,
    }
    /// Leave a room, on its owner's behalf.
    LeaveParams {
        /// Which; a client that has moved on stays.
        #[schemars(with = "String")]
        room: RoomName,
        /// How it is closed.
        code: Option<u16>,
        /// Why.
        reason: Option<String>,
    }
    /// A command at a place in the client's own stream of frames.
    MarkParams {
        /// What is told at that place; any JSON value.
        data: Value,
        /// Behind how many of the frames that the client has sent on its present socket; behind the last that was
        /// received when left out.
        #[serde(default)] after: Option<u64>,
    }
    /// What a pipe is to be that takes a new socket; what is left out stays.
    SwitchParams {
        /// What the client can speak there: one format, or several in order of preference.
        #[serde(default)] format: Option<OneOrMany>,
        /// Another room.
        #[serde(default)]
        #[schemars(with = "Option<String>")]
        room: Option<RoomName>,
        /// What the client is to offer with its new socket; it is told, and taken from what it offers then.
        #[serde(default)] subprotocol: Option<String>,
        /// Seconds that the new ticket lives.
        #[serde(default)] ttl: Option<u64>,
    }
    /// Which events of the room are meant; all of them when nothing is said.
    WatchParams {
        /// Who comes and goes.
        #[serde(default)] joins: Option<bool>,
        /// Marks in the pipe.
        #[serde(default)] marks: Option<bool>,
        /// What other agents signal to the whole room.
        #[serde(default)] signals: Option<bool>,
    }
    /// Something for other agents' siblings.
    SignalParams {
        /// \"room\", or the id of a pair that is in the room.
        to: SignalTo,
        /// Any JSON value.
        data: Value,
        /// What it answers, or is to be answered with: handed on as it is.
        #[serde(default)] reply_to: Option<String>,
    }
    /// Up to where events have been dealt with.
    AckParams {
        /// The cursor of the last one.
        cursor: String,
    }
    /// A part of a list.
    MembersParams {
        /// The last id of the part before.
        #[serde(default)] after: Option<String>,
        /// How many, 1 to 1000.
        #[serde(default)] limit: Option<usize>,
    }
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTo {
    /// The siblings of everyone else in the room.
    Room,
    /// One pair's siblings.
    Pair(PairId),
}

impl Serialize for SignalTo {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Room => s.serialize_str("room"),
            Self::Pair(pair) => Serialize::serialize(pair, s),
        }
    }
}

impl<'de> Deserialize<'de> for SignalTo {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text == "room" {
            return Ok(Self::Room);
        }
        text.parse().map(Self::Pair).map_err(|_| serde::de::Error::custom("\"room\", or the id of a pair"))
    }
}

impl JsonSchema for SignalTo {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SignalTo".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::json_schema(generator)
    }
}

/// The most that a mark or a signal carries, in bytes of JSON.
const LARGEST_DATA: usize = 16 << 10;

fn check_data(data: &Value) -> Result<(), Failure> {
    let size = serde_json::to_vec(data).map_or(usize::MAX, |bytes| bytes.len());
    if size > LARGEST_DATA {
        return Err(Failure::new(Fault::TooLarge, format!("data: at most {LARGEST_DATA} bytes of JSON")));
    }
    Ok(())
}

impl MarkParams {
    pub(super) fn check(self) -> Result<Self, Failure> {
        check_data(&self.data).map(|()| self)
    }
}

impl SwitchParams {
    pub(super) fn check(self) -> Result<Self, Failure> {
        if self.subprotocol.as_ref().is_some_and(|name| name.len() > 128 || !super::spec::is_token(name)) {
            return Err(invalid("subprotocol: letters, digits and !#$%&'*+-.^_`|~, at most 128 bytes"));
        }
        Ok(self)
    }
}

impl SignalParams {
    pub(super) fn check(self) -> Result<Self, Failure> {
        if self.reply_to.as_ref().is_some_and(|reply_to| reply_to.len() > 256) {
            return Err(invalid("reply_to: at most 256 bytes"));
        }
        check_data(&self.data).map(|()| self)
    }
}

impl WatchParams {
    /// What is watched after this, where `before` was; `on` tells whether what is meant is watched or not.
    #[must_use]
    pub fn change(&self, before: Watching, on: bool) -> Watching {
        let all = self.joins.is_none() && self.marks.is_none() && self.signals.is_none();
        let one = |named: Option<bool>, before: bool| match named {
            None if all => on,
            // False means the opposite: what is watched is as it says.
            Some(named) => named == on,
            None => before,
        };
        Watching {
            joins: one(self.joins, before.joins),
            marks: one(self.marks, before.marks),
            signals: one(self.signals, before.signals),
        }
    }
}

const fn buffer() -> PausePolicy {
    PausePolicy::Buffer
}

/// A failure that names the field.
pub(super) fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Fault::InvalidParams, message)
}

impl PayloadParams {
    pub(super) fn payload(self) -> Result<Payload, Failure> {
        let decode = |text: String| {
            STANDARD.decode(text).map(Bytes::from).map_err(|_| invalid("base64: not standard base64 with padding"))
        };
        let (kind, bytes) = match (self.text, self.base64, self.binary) {
            (Some(text), None, None) => (FrameKind::Text, Bytes::from(text)),
            (None, Some(data), None) | (None, None, Some(Binary { base64: data })) => {
                (FrameKind::Binary, decode(data)?)
            }
            _ => return Err(invalid("params: exactly one of text and base64 (in MessagePack also binary)")),
        };
        Ok(Payload { kind, bytes })
    }
}

impl SetParams {
    pub(super) fn check(self) -> Result<Self, Failure> {
        if let Some(Some(rate)) = &self.rate {
            rate.check()?;
        }
        match &self {
            Self { queue_bytes: None, slow: None, rate: None, ping: None, meta: None } => {
                Err(invalid("params: at least one of queue_bytes, slow, rate, ping, meta"))
            }
            Self { queue_bytes: Some(n), .. } if !super::QUEUE_BYTES.contains(n) => {
                Err(invalid("queue_bytes: 1024 to 67108864"))
            }
            Self { ping: Some(n), .. } if !(1..=3_600).contains(n) => Err(invalid("ping: 1 to 3600 seconds")),
            Self { meta: Some(meta), .. } => check_meta(meta).map(|()| self),
            _ => Ok(self),
        }
    }
}

/// Meta data is an application's own, up to 4 KiB of JSON.
///
/// # Errors
/// [`Fault::InvalidParams`] when it is larger.
pub fn check_meta(meta: &Map<String, Value>) -> Result<(), Failure> {
    let size = serde_json::to_vec(meta).map_or(usize::MAX, |bytes| bytes.len());
    if size > 4_096 { Err(invalid("meta: at most 4096 bytes of JSON")) } else { Ok(()) }
}

impl CloseParams {
    pub(super) fn check(self) -> Result<Self, Failure> {
        check_closing(self.code, self.reason.as_deref()).map(|()| self)
    }
}

impl KickParams {
    pub(super) fn check(self) -> Result<Self, Failure> {
        check_closing(self.code, self.reason.as_deref()).map(|()| self)
    }
}

/// What others may say when they close a client's socket.
fn check_closing(code: Option<u16>, reason: Option<&str>) -> Result<(), Failure> {
    if code.is_some_and(|code| code != 1000 && !(4000..=4999).contains(&code)) {
        return Err(invalid("code: 1000, or 4000 to 4999"));
    }
    if reason.is_some_and(|reason| reason.len() > super::LONGEST_REASON) {
        return Err(invalid("reason: at most 123 bytes"));
    }
    Ok(())
}

impl MembersParams {
    /// How many the page has: 100 when nothing is said.
    #[must_use]
    pub fn size(&self) -> usize {
        self.limit.unwrap_or(100)
    }

    /// Checks that it can be answered.
    ///
    /// # Errors
    /// [`Fault::InvalidParams`], naming the field.
    pub fn check(self) -> Result<Self, Failure> {
        if self.limit.is_some_and(|limit| !(1..=1_000).contains(&limit)) {
            return Err(invalid("limit: 1 to 1000"));
        }
        if self.after.as_ref().is_some_and(|after| after.len() > 128) {
            return Err(invalid("after: the id of a member"));
        }
        Ok(self)
    }
}

/// Tells a field that says null from one that is left out.
fn said<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}
