//! Events: what a sibling hears of its client socket.

use std::io::Write as _;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{Failure, Moment, NodeId, PairId, Position, RoomName};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// What an event tells. Past tense for what happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum EventKind { $($(#[$doc])* #[serde(rename = $text)] $name,)* }

        impl EventKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// First on every sibling: who the pair is and where its story stands. Not kept.
    Ready = "ready";
    /// Some events are no longer kept and can't be told. Not kept.
    Gap = "gap";
    /// A client socket opened.
    ClientOpened = "client.opened";
    /// The client socket is gone.
    ClientClosed = "client.closed";
    /// The open pipe is in another room.
    ClientMoved = "client.moved";
    /// Frames to or from the client stopped.
    ClientPaused = "client.paused";
    /// They go on.
    ClientUnpaused = "client.unpaused";
    /// A pipe goes on where the one before it stopped.
    ClientResumed = "client.resumed";
    /// The pipe is handed over to a new client socket.
    ClientSwitching = "client.switching";
    /// Settings of the pipe are others.
    ClientChanged = "client.changed";
    /// Frames that the client sent were not taken.
    ClientRefused = "client.refused";
    /// The client reads more slowly than its room speaks.
    ClientLagging = "client.lagging";
    /// It no longer does.
    ClientCaughtUp = "client.caught_up";
    /// The client sends more than its rate, and is read more slowly.
    ClientLimited = "client.limited";
    /// Another agent's client socket entered the room.
    PeerJoined = "peer.joined";
    /// It left the room.
    PeerLeft = "peer.left";
    /// Another agent tells something.
    Signal = "signal";
    /// Another agent tells something at a place in the pipe.
    Mark = "mark";
    /// A mark could not be set: the frame that it was to follow never came.
    MarkMissed = "mark.missed";
    /// Another specification holds in the client's room.
    RoomChanged = "room.changed";
    /// The client's room was closed, and its socket with it.
    RoomClosed = "room.closed";
    /// The ticket of a socket is about to expire. Kept where it is the client socket's; a sibling's own is not.
    TicketExpiring = "ticket.expiring";
    /// The pair ended.
    PairEnded = "pair.ended";
    /// The node stops: come back elsewhere. Not kept.
    NodeDraining = "node.draining";
    /// The node can't reach the broker: events and other nodes must wait. Not kept.
    BrokerLost = "broker.lost";
    /// It can again. Not kept.
    BrokerRestored = "broker.restored";
}

/// The command that an event is the effect of: its key, else its id and who gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The command's `key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The request's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// The sibling that gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sibling: Option<String>,
}

/// One event. What it says is written once, when it is raised; it is kept and told as it was written, and read only by
/// those who are about to look into it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What it tells.
    pub kind: EventKind,
    /// What of it is for the nodes, and not told.
    pub unsaid: Option<Box<Unsaid>>,
    /// When it happened, by the clock of the node that raised it.
    pub at: Moment,
    /// The members [`Said`] has, as JSON writes them between braces.
    said: Bytes,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// Its particulars. They come first.
    pub data: Value,
    /// The command that it is the effect of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
}

/// What of an event is for the nodes that tell it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Unsaid {
    /// In a room's talk: the id of the pair that it is of, to which it is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Uuid>,
    /// The node that counts to how many it is told, and the number by which it knows the answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<(NodeId, u64)>,
    /// Where the pair stands in its room's talk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stand: Option<Stand>,
}

/// Where a pair stands in the talk of its room when something happens to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stand {
    /// The room where it is from then on.
    pub room: RoomName,
    /// Where in that room's talk: what follows is for the pair.
    pub at: Position,
    /// The room that it left by that, and up to where that one's talk was for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<(RoomName, Position)>,
}

impl Stand {
    /// In a room, at a place of its talk.
    #[must_use]
    pub fn unsaid(room: RoomName, at: Position, left: Option<(RoomName, Position)>) -> Option<Box<Unsaid>> {
        Some(Box::new(Unsaid { stand: Some(Self { room, at, left }), ..Unsaid::default() }))
    }
}

/// What stands before the particulars in what is said.
const BEFORE_DATA: &[u8] = b"\"data\":";

impl Event {
    /// An event that is raised.
    #[must_use]
    pub fn new(kind: EventKind, at: Moment, said: &Said, unsaid: Option<Box<Unsaid>>) -> Self {
        // Texts, numbers, lists and maps by text: all of them can be written.
        let object = serde_json::to_vec(said).unwrap_or_default();
        let said = object.get(1..object.len().saturating_sub(1)).unwrap_or_default();
        Self { kind, unsaid, at, said: Bytes::copy_from_slice(said) }
    }

    /// The bytes that are kept.
    ///
    /// # Errors
    /// When it can't be encoded.
    pub fn encode(&self) -> Result<Box<[u8]>, Failure> {
        let mut bytes = Vec::with_capacity(self.said.len() + 160);
        rmp_serde::encode::write_named(&mut bytes, &(self.kind, &self.unsaid, self.at))
            .map_err(|e| Failure::new(super::Fault::Internal, e.to_string()))?;
        bytes.extend_from_slice(&self.said);
        // It may be kept for long, without the room that was there for more.
        Ok(bytes.into_boxed_slice())
    }

    /// Reads what is kept. What it says stays where it is.
    ///
    /// # Errors
    /// When it was not written by [`Event::encode`].
    pub fn decode(bytes: &Bytes) -> Result<Self, Failure> {
        let failed = |why: String| Failure::new(super::Fault::Internal, why);
        let mut rest = &bytes[..];
        let head =
            <(EventKind, Option<Box<Unsaid>>, Moment)>::deserialize(&mut rmp_serde::Deserializer::new(&mut rest));
        let (kind, unsaid, at) = head.map_err(|e| failed(e.to_string()))?;
        if !rest.starts_with(BEFORE_DATA) || std::str::from_utf8(rest).is_err() {
            return Err(failed("an event says nothing".into()));
        }
        Ok(Self { kind, unsaid, at, said: bytes.slice(bytes.len() - rest.len()..) })
    }

    /// What it says; `None` when that can't be read.
    #[must_use]
    pub fn said(&self) -> Option<Said> {
        serde_json::from_slice(&[b"{", &self.said[..], b"}"].concat()).ok()
    }

    /// Its particulars; null when they can't be read.
    #[must_use]
    pub fn data(&self) -> Value {
        self.said().map(|said| said.data).unwrap_or_default()
    }

    /// Whether it is of this pair, in a room's talk.
    #[must_use]
    pub fn is_of(&self, pair: PairId) -> bool {
        self.unsaid.as_ref().is_some_and(|unsaid| unsaid.of == Some(pair.uuid()))
    }

    /// Writes it as a listener receives it, with the cursor of its place in the pair's story, behind `bytes`.
    pub fn write(&self, cursor: &str, bytes: &mut Vec<u8>) {
        let kind = self.kind.as_str().as_bytes();
        for part in [b"{\"type\":\"", kind, b"\",\"cursor\":\"", cursor.as_bytes(), b"\",\"at\":\""] {
            bytes.extend_from_slice(part);
        }
        // Into memory: it can't fail.
        drop(write!(bytes, "{}", self.at));
        for part in [b"\",", &self.said[..], b"}"] {
            bytes.extend_from_slice(part);
        }
    }

    /// The same, for who writes it in another way.
    #[must_use]
    pub fn told<'a>(&self, cursor: &'a str) -> Option<Told<'a>> {
        Some(Told { kind: self.kind, cursor, at: self.at.to_string(), said: self.said()? })
    }
}

/// An event as a listener receives it, in the order of fields that it is written.
#[derive(Debug, Clone, Serialize)]
pub struct Told<'a> {
    /// What it tells.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// The name of its place in the pair's story.
    pub cursor: &'a str,
    /// When it happened: RFC 3339 with milliseconds.
    pub at: String,
    /// What it says.
    #[serde(flatten)]
    pub said: Said,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_kept_is_what_was_raised() {
        for kind in EventKind::ALL {
            let said = Said {
                data: json!({"n": u64::MAX, "x": [null, -1, 0.1, "é\"", 1.797_693_134_862_315_7e308]}),
                cause: Some(Cause { key: None, id: Some(json!(7)), sibling: Some("s".into()) }),
            };
            let unsaid = Stand::unsaid("a".parse().unwrap(), Position { offset: 3, nonce: u64::MAX }, None);
            let event = Event::new(*kind, Moment(1_795_692_994_198), &said, unsaid);
            assert_eq!(Event::decode(&event.encode().unwrap().into()).unwrap(), event);
            assert_eq!(event.data(), said.data);
            let mut written = Vec::new();
            event.write("here", &mut written);
            let told = event.told("here").unwrap();
            assert_eq!(told.said, said);
            assert_eq!(String::from_utf8(written).unwrap(), serde_json::to_string(&told).unwrap());
            assert_eq!(json!(kind), json!(kind.as_str()));
        }
    }

    #[test]
    fn what_is_no_event_is_not_read() {
        let kept = Event::new(EventKind::Mark, Moment(7), &Said { data: Value::Null, cause: None }, None);
        let kept = kept.encode().unwrap();
        assert!(Event::decode(&Bytes::copy_from_slice(&kept)).is_ok());
        for end in 0..kept.len() - 14 {
            assert!(Event::decode(&Bytes::copy_from_slice(&kept[..end])).is_err(), "{end}");
        }
        let newer = [b"\x93\xa3new\xc0", &kept[7..]].concat();
        assert!(Event::decode(&newer.into()).is_err());
    }
}
