//! Events: what a sibling hears of its client socket.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Failure, NodeId, PairId, Position, RoomName};

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

/// One event as it is kept and as it is told; what is told adds the cursor of its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What it tells.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// When it happened: RFC 3339 with milliseconds, by the clock of the node that raised it.
    pub at: String,
    /// Its particulars.
    pub data: Value,
    /// The command that it is the effect of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// What of it is for the nodes, and not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsaid: Option<Box<Unsaid>>,
}

/// What of an event is for the nodes that tell it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Unsaid {
    /// In a room's talk: the pair that it is of, to which it is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<PairId>,
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

impl Event {
    /// The bytes that are kept.
    ///
    /// # Errors
    /// When it can't be encoded.
    pub fn encode(&self) -> Result<Box<[u8]>, Failure> {
        // It may be kept for long, without the room that was there for more.
        let bytes = rmp_serde::to_vec_named(self).map(Vec::into_boxed_slice);
        bytes.map_err(|e| Failure::new(super::Fault::Internal, e.to_string()))
    }

    /// Whether it is of this pair, in a room's talk.
    #[must_use]
    pub fn is_of(&self, pair: PairId) -> bool {
        self.unsaid.as_ref().is_some_and(|unsaid| unsaid.of == Some(pair))
    }

    /// Reads what is kept.
    ///
    /// # Errors
    /// When it was not written by [`Event::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Failure> {
        rmp_serde::from_slice(bytes).map_err(|e| Failure::new(super::Fault::Internal, e.to_string()))
    }
}

/// An event as a sibling receives it, in the order of fields that it is written.
#[derive(Debug, Clone, Serialize)]
pub struct Told<'a> {
    /// What it tells.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// The name of its place in the pair's history.
    pub cursor: String,
    /// When it happened.
    pub at: &'a str,
    /// Its particulars.
    pub data: &'a Value,
    /// The command that it is the effect of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'a Cause>,
}

impl Event {
    /// The event with the cursor of its place.
    #[must_use]
    pub fn told(&self, cursor: String) -> Told<'_> {
        Told { kind: self.kind, cursor, at: &self.at, data: &self.data, cause: self.cause.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_kept_is_what_was_raised() {
        for kind in EventKind::ALL {
            let event = Event {
                kind: *kind,
                at: "2026-01-01T00:00:00.000Z".into(),
                data: json!({"n": u64::MAX, "x": [null, -1, 0.5, "é"]}),
                cause: Some(Cause { key: None, id: Some(json!(7)), sibling: Some("s".into()) }),
                unsaid: Stand::unsaid("a".parse().unwrap(), Position { offset: 3, nonce: u64::MAX }, None),
            };
            assert_eq!(Event::decode(&event.encode().unwrap()).unwrap(), event);
            assert_eq!(json!(kind), json!(kind.as_str()));
        }
    }
}
