//! Commands: what a sibling may ask for on behalf of its client socket.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{Failure, Fault, FrameKind, Rate, RoomName, Side, Slow};

/// One frame's worth of payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Text or binary.
    pub kind: FrameKind,
    /// The bytes, as they go onto the wire.
    #[serde(with = "serde_bytes_bytes")]
    pub bytes: Bytes,
}

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

/// One command, checked as far as it can be without knowing the pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// `pair.get`
    PairGet,
    /// `pair.ticket`
    PairTicket(TicketParams),
    /// `pair.end`
    PairEnd(ReasonParams),
    /// `client.send`
    Send(Payload),
    /// `client.push`
    Push(Payload),
    /// `client.move`
    Move(MoveParams),
    /// `client.pause`
    Pause(PauseParams),
    /// `client.resume`
    Resume(ResumeParams),
    /// `client.set`
    Set(SetParams),
    /// `client.close`
    Close(CloseParams),
    /// `client.ping`
    Ping,
    /// `room.get`
    RoomGet,
    /// `room.members`
    RoomMembers(MembersParams),
    /// `rpc.discover`
    Discover,
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
    /// A part of a list.
    MembersParams {
        /// The last id of the part before.
        #[serde(default)] after: Option<String>,
        /// How many, 1 to 1000.
        #[serde(default)] limit: Option<usize>,
    }
}

const fn buffer() -> PausePolicy {
    PausePolicy::Buffer
}

/// A command's entry in the table of all.
pub struct Method {
    /// Its name, which is also its grant.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// What it takes.
    pub params: fn() -> Schema,
    read: fn(Value) -> Result<Command, Failure>,
}

macro_rules! methods {
    ($($name:literal, $params:ty, $about:literal, $read:expr;)*) => {
        /// Every command there is.
        pub const METHODS: &[Method] = &[$(Method {
            name: $name,
            about: $about,
            params: || schema_for!($params),
            read: |params| {
                let read: fn($params) -> Result<Command, Failure> = $read;
                read(typed(params)?)
            },
        },)*];
    };
}

methods! {
    "pair.get", NoParams, "The pair's state and counters.", |_| Ok(Command::PairGet);
    "pair.ticket", TicketParams, "A fresh ticket with the caller's grants or fewer.", |p| Ok(Command::PairTicket(p));
    "pair.end", ReasonParams, "Ends the pair; its client socket is closed with 3510.", |p| Ok(Command::PairEnd(p));
    "client.send", PayloadParams, "Publishes a frame to the room as the client.", |p| Ok(Command::Send(p.payload()?));
    "client.push", PayloadParams, "Delivers a frame into the client's own pipe.", |p| Ok(Command::Push(p.payload()?));
    "client.move", MoveParams, "Moves the open pipe to another room.", |p| Ok(Command::Move(p));
    "client.pause", PauseParams, "Stops frames to or from the client.", |p| Ok(Command::Pause(p));
    "client.resume", ResumeParams, "Lets paused frames go on.", |p| Ok(Command::Resume(p));
    "client.set", SetParams, "Changes settings of the live pipe.", |p| p.check().map(Command::Set);
    "client.close", CloseParams, "Closes the client socket; the pair lingers.", |p| p.check().map(Command::Close);
    "client.ping", NoParams, "Measures the round trip to the client.", |_| Ok(Command::Ping);
    "room.get", NoParams, "The pair's own room.", |_| Ok(Command::RoomGet);
    "room.members", MembersParams, "Who is in the pair's own room.", |p| p.check().map(Command::RoomMembers);
    "rpc.discover", NoParams, "The OpenRPC document.", |_| Ok(Command::Discover);
}

impl Command {
    /// Reads a command and its optional key.
    ///
    /// # Errors
    /// [`Fault::UnknownMethod`], or [`Fault::InvalidParams`] with the field's name.
    pub fn read(method: &str, mut params: Value) -> Result<(Self, Option<String>), Failure> {
        let Some(entry) = METHODS.iter().find(|m| m.name == method) else {
            let message = format!("there is no command {:?}: rpc.discover lists them", cut(method));
            return Err(Failure::new(Fault::UnknownMethod, message));
        };
        let key = match params.as_object_mut().and_then(|fields| fields.remove("key")) {
            None => None,
            Some(Value::String(key)) if (1..=128).contains(&key.len()) => Some(key),
            Some(_) => return Err(invalid("key: a text of 1 to 128 bytes")),
        };
        Ok(((entry.read)(params)?, key))
    }

    /// Whether it only asks: then nothing is done twice when it is carried out twice.
    #[must_use]
    pub const fn changes_nothing(&self) -> bool {
        matches!(self, Self::PairGet | Self::Ping | Self::RoomGet | Self::RoomMembers(_) | Self::Discover)
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PairGet => "pair.get",
            Self::PairTicket(_) => "pair.ticket",
            Self::PairEnd(_) => "pair.end",
            Self::Send(_) => "client.send",
            Self::Push(_) => "client.push",
            Self::Move(_) => "client.move",
            Self::Pause(_) => "client.pause",
            Self::Resume(_) => "client.resume",
            Self::Set(_) => "client.set",
            Self::Close(_) => "client.close",
            Self::Ping => "client.ping",
            Self::RoomGet => "room.get",
            Self::RoomMembers(_) => "room.members",
            Self::Discover => "rpc.discover",
        }
    }
}

/// A failure that names the field.
fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Fault::InvalidParams, message)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}

fn typed<T: DeserializeOwned>(params: Value) -> Result<T, Failure> {
    serde_path_to_error::deserialize(params).map_err(|e| Failure::misfit("params", &e))
}

impl PayloadParams {
    fn payload(self) -> Result<Payload, Failure> {
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
    fn check(self) -> Result<Self, Failure> {
        let rates = self.rate.flatten();
        let rates = rates.iter().flat_map(|r| [r.messages_per_second, r.bytes_per_second]).flatten();
        match &self {
            Self { queue_bytes: None, slow: None, rate: None, ping: None, meta: None } => {
                Err(invalid("params: at least one of queue_bytes, slow, rate, ping, meta"))
            }
            Self { queue_bytes: Some(n), .. } if !(1_024..=64 << 20).contains(n) => {
                Err(invalid("queue_bytes: 1024 to 67108864"))
            }
            Self { ping: Some(n), .. } if !(1..=3_600).contains(n) => Err(invalid("ping: 1 to 3600 seconds")),
            Self { meta: Some(meta), .. } => check_meta(meta).map(|()| self),
            _ if rates.into_iter().any(|r| !(0.1..=1e12).contains(&r)) => {
                Err(invalid("rate: 0.1 or more per second"))
            }
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
    fn check(self) -> Result<Self, Failure> {
        if self.code.is_some_and(|code| code != 1000 && !(4000..=4999).contains(&code)) {
            return Err(invalid("code: 1000, or 4000 to 4999"));
        }
        if self.reason.as_ref().is_some_and(|reason| reason.len() > super::LONGEST_REASON) {
            return Err(invalid("reason: at most 123 bytes"));
        }
        Ok(self)
    }
}

impl MembersParams {
    /// How many a page has when nothing is said.
    pub const LIMIT: usize = 100;

    fn check(self) -> Result<Self, Failure> {
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

/// `Bytes` as a byte string, without a detour over a list of numbers.
mod serde_bytes_bytes {
    use bytes::Bytes;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Bytes, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        serde_bytes::deserialize::<Vec<u8>, D>(d).map(Bytes::from)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fault(method: &str, params: Value) -> Failure {
        Command::read(method, params).unwrap_err()
    }

    #[test]
    fn params_are_checked_by_name() {
        assert_eq!(fault("client.fly", json!({})).fault, Fault::UnknownMethod);
        for (method, params, names) in [
            ("client.move", json!({}), "room"),
            ("client.move", json!({"room": "a b"}), "room"),
            ("client.move", json!({"room": "a", "x": 1}), "x"),
            ("client.pause", json!({"direction": "up"}), "up"),
            ("client.send", json!({}), "text"),
            ("client.send", json!({"text": "a", "base64": ""}), "one of"),
            ("client.push", json!({"base64": "***"}), "base64"),
            ("client.set", json!({}), "queue_bytes"),
            ("client.set", json!({"queue_bytes": 1}), "queue_bytes"),
            ("client.set", json!({"ping": 0}), "ping"),
            ("client.set", json!({"rate": {"bytes_per_second": -1}}), "rate"),
            ("client.set", json!({"meta": {"x": "y".repeat(5_000)}}), "meta"),
            ("client.close", json!({"code": 1001}), "code"),
            ("client.close", json!({"reason": "x".repeat(124)}), "reason"),
            ("room.members", json!({"limit": 0}), "limit"),
            ("client.ping", json!({"key": ""}), "key"),
            ("client.ping", json!({"x": 1}), "x"),
        ] {
            let failure = fault(method, params);
            assert_eq!(failure.fault.rpc(), Fault::InvalidParams.rpc(), "{method}: {failure}");
            assert!(failure.message.contains(names), "{method}: {failure} does not name {names}");
        }
    }

    #[test]
    fn a_command_crosses_nodes_unchanged() {
        for (method, params) in [
            ("client.set", json!({"rate": null})),
            ("client.send", json!({"base64": "AAEC"})),
            ("client.push", json!({"text": "é", "key": "k"})),
            ("client.set", json!({"rate": {"messages_per_second": 5}, "meta": {"a": [1, null]}})),
            ("pair.ticket", json!({"side": "client", "grants": ["*"], "ttl": 5})),
            ("rpc.discover", json!({})),
        ] {
            let (command, _) = Command::read(method, params).unwrap();
            assert_eq!(command.name(), method);
            let there = rmp_serde::to_vec_named(&command).unwrap();
            assert_eq!(rmp_serde::from_slice::<Command>(&there).unwrap(), command);
        }
    }
}
