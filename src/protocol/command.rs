//! Commands: what a sibling may ask for on behalf of its client socket.

use std::time::Duration;

use bytes::Bytes;
use schemars::{Schema, schema_for};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Failure, Fault, FrameKind, MARK_WAIT, RoomName, RoomSpec,
    params::{
        AckParams, CloseParams, KickParams, LeaveParams, MarkParams, MembersParams, MoveParams, NoParams,
        PauseParams, PayloadParams, ReasonParams, ResumeParams, SetParams, SignalParams, SwitchParams, TicketParams,
        WatchParams, invalid,
    },
};

/// One frame's worth of payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Text or binary.
    pub kind: FrameKind,
    /// The bytes, as they go onto the wire.
    #[serde(with = "wire_bytes")]
    pub bytes: Bytes,
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
    /// `client.mark`
    Mark(MarkParams),
    /// `client.move`
    Move(MoveParams),
    /// `client.pause`
    Pause(PauseParams),
    /// `client.resume`
    Resume(ResumeParams),
    /// `client.set`
    Set(SetParams),
    /// `client.switch`
    Switch(SwitchParams),
    /// `client.close`
    Close(CloseParams),
    /// `client.ping`
    Ping,
    /// `room.get`
    RoomGet,
    /// `room.members`
    RoomMembers(MembersParams),
    /// `room.watch`
    Watch(WatchParams),
    /// `room.unwatch`
    Unwatch(WatchParams),
    /// `room.signal`
    Signal(SignalParams),
    /// `room.set`
    RoomSet(Box<RoomSpec>),
    /// `room.kick`
    RoomKick(KickParams),
    /// `room.close`
    RoomClose(ReasonParams),
    /// The effect of `room.kick` on its target. Nobody can ask for it directly.
    Leave(LeaveParams),
    /// Give up what is kept for the pair's next socket, which has opened on another node: it crosses to there. Nobody can
    /// ask for it directly.
    Unpark {
        /// In which room it has opened.
        room: RoomName,
        /// Which one it is.
        epoch: u64,
        /// How many frames are known to have been received on the last one.
        received: Option<u64>,
    },
    /// `events.ack`
    Ack(AckParams),
    /// `rpc.discover`
    Discover,
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
    "client.mark", MarkParams, "Tells the room something at an exact place among the client's frames.", |p| p.check().map(Command::Mark);
    "client.move", MoveParams, "Moves the open pipe to another room.", |p| Ok(Command::Move(p));
    "client.pause", PauseParams, "Stops frames to or from the client.", |p| Ok(Command::Pause(p));
    "client.resume", ResumeParams, "Lets paused frames go on.", |p| Ok(Command::Resume(p));
    "client.set", SetParams, "Changes settings of the live pipe.", |p| p.check().map(Command::Set);
    "client.switch", SwitchParams, "Hands the pipe over to a new socket, and loses no frame.", |p| p.check().map(Command::Switch);
    "client.close", CloseParams, "Closes the client socket; the pair lingers.", |p| p.check().map(Command::Close);
    "client.ping", NoParams, "Measures the round trip to the client.", |_| Ok(Command::Ping);
    "room.get", NoParams, "The pair's own room.", |_| Ok(Command::RoomGet);
    "room.members", MembersParams, "Who is in the pair's own room.", |p| p.check().map(Command::RoomMembers);
    "room.watch", WatchParams, "Has the pair's siblings told of more that happens in its room.", |p| Ok(Command::Watch(p));
    "room.unwatch", WatchParams, "Has them told of less.", |p| Ok(Command::Unwatch(p));
    "room.signal", SignalParams, "Tells other agents' siblings something.", |p| p.check().map(Command::Signal);
    "room.set", RoomSpec, "Sets the specification of the pair's own room.", |p| Ok(Command::RoomSet(Box::new(p)));
    "room.kick", KickParams, "Closes another member's client socket.", |p| p.check().map(Command::RoomKick);
    "room.close", ReasonParams, "Closes the client sockets of all members with 3511.", |p| Ok(Command::RoomClose(p));
    "events.ack", AckParams, "Says up to where the pair's events have been dealt with.", |p| Ok(Command::Ack(p));
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

    /// How long it may wait for something to happen before it is carried out.
    #[must_use]
    pub const fn wait(&self) -> Duration {
        match self {
            Self::Mark(MarkParams { after: Some(_), .. }) => MARK_WAIT,
            _ => Duration::ZERO,
        }
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
            Self::Mark(_) => "client.mark",
            Self::Move(_) => "client.move",
            Self::Pause(_) => "client.pause",
            Self::Resume(_) => "client.resume",
            Self::Set(_) => "client.set",
            Self::Switch(_) | Self::Unpark { .. } => "client.switch",
            Self::Close(_) => "client.close",
            Self::Ping => "client.ping",
            Self::RoomGet => "room.get",
            Self::RoomMembers(_) => "room.members",
            Self::Watch(_) => "room.watch",
            Self::Unwatch(_) => "room.unwatch",
            Self::Signal(_) => "room.signal",
            Self::RoomSet(_) => "room.set",
            Self::RoomKick(_) | Self::Leave(_) => "room.kick",
            Self::RoomClose(_) => "room.close",
            Self::Ack(_) => "events.ack",
            Self::Discover => "rpc.discover",
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}

fn typed<T: DeserializeOwned>(params: Value) -> Result<T, Failure> {
    serde_path_to_error::deserialize(params).map_err(|e| Failure::misfit("params", &e))
}

/// `Bytes` as a byte string, without a detour over a list of numbers.
pub(super) mod wire_bytes {
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
    use crate::protocol::PairId;

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
            ("room.set", json!({"formt": "text"}), "formt"),
            ("room.kick", json!({"pair": "x"}), "pair"),
            ("client.switch", json!({"subprotocol": "a b"}), "subprotocol"),
            ("client.mark", json!({"after": 1}), "data"),
            ("client.mark", json!({"data": 1, "after": -1}), "after"),
            ("room.signal", json!({"to": "rooms", "data": 1}), "to"),
            ("room.signal", json!({"to": "room", "data": 1, "reply_to": "x".repeat(257)}), "reply_to"),
            ("room.watch", json!({"marks": 1}), "marks"),
            ("room.kick", json!({"pair": PairId::fresh(), "code": 3503}), "code"),
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
            ("room.set", json!({"format": ["json", "text"], "rate": {"messages_per_second": 5}, "meta": {"a": 1}})),
            ("room.kick", json!({"pair": PairId::fresh(), "code": 4001})),
            ("client.mark", json!({"data": [1, {"a": null}], "after": 7})),
            ("client.switch", json!({"format": "text", "room": "a", "subprotocol": "mqtt"})),
            ("room.watch", json!({"marks": true})),
            ("room.signal", json!({"to": PairId::fresh(), "data": null, "reply_to": "x"})),
            ("rpc.discover", json!({})),
        ] {
            let (command, _) = Command::read(method, params).unwrap();
            assert_eq!(command.name(), method);
            let there = rmp_serde::to_vec_named(&command).unwrap();
            assert_eq!(rmp_serde::from_slice::<Command>(&there).unwrap(), command);
        }
    }
}
