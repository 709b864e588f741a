//! What every node must know of a pair.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Trace;
use crate::{
    broker::Record,
    protocol::{Authority, Chosen, Failure, Fault, Format, NodeId, Place, Position, RoomName, Watching},
};

/// What every node must know of a pair. Its client socket has it for as long as it is open, and the registry for longer: so
/// what few pairs have is kept elsewhere, or left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Its room.
    pub room: RoomName,
    /// What it speaks there; before its first client socket, what it is expected to.
    pub format: Format,
    /// What its client said that it can speak, in order; empty when it said nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offers: Vec<Format>,
    /// Its application's own data.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub meta: Map<String, Value>,
    /// Seconds that it waits for a client socket.
    pub linger_seconds: u64,
    /// What was chosen for its pipe; the rest is as its room says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Box<Chosen>>,
    /// What its siblings are told of its room.
    #[serde(default, skip_serializing_if = "is_default")]
    pub watching: Watching,
    /// Where its pipe stood in what its room keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Box<Trace>>,
    /// The node that keeps frames for it until its pipe has a new socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<NodeId>,
    /// The room where it was first, and where it came to that one's talk: there its story begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<(RoomName, Position)>,
    /// Where it came to its present room's talk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Position>,
    /// Up to where its events have been dealt with, as its siblings said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked: Option<Box<Place>>,
    /// On whose behalf it was made, and how far that goes.
    #[serde(default = "Authority::of_nobody", skip_serializing_if = "Authority::is_of_nobody")]
    pub authority: Arc<Authority>,
}

// What goes without saying is not kept: of most pairs that is most of it.

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Facts {
    /// Reads what [`Facts::write`] wrote.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok()
    }

    /// The bytes for the registry.
    ///
    /// # Errors
    /// [`Fault::Internal`] when they can't be encoded.
    pub fn write(&self) -> Result<bytes::Bytes, Failure> {
        let bytes = rmp_serde::to_vec_named(self);
        bytes.map(|bytes| bytes.into_boxed_slice().into()).map_err(|e| Failure::new(Fault::Internal, e.to_string()))
    }

    /// With this name of the room, where it is said: of one name there are not to be several copies.
    pub(super) fn name(&mut self, room: &RoomName) {
        let names = std::iter::once(&mut self.room).chain(self.first.as_mut().map(|(first, _)| first));
        names.filter(|name| *name == room).for_each(|name| name.clone_from(room));
    }

    /// How long the pair waits for a client socket.
    #[must_use]
    pub fn linger(&self) -> Duration {
        Duration::from_secs(self.linger_seconds)
    }

    /// With what the next client said that it can speak; one that said nothing speaks what the pair spoke before.
    #[must_use]
    pub fn offering(mut self, offers: &[Format]) -> Self {
        if !offers.is_empty() {
            self.offers = offers.to_vec();
        }
        self
    }

    /// What its client can speak where it is, or goes: one that said nothing keeps to what it speaks, because its peers
    /// agreed on that.
    #[must_use]
    pub fn speaks(&self) -> Vec<Format> {
        if self.offers.is_empty() { vec![self.format] } else { self.offers.clone() }
    }
}

/// What a new pair is to be.
#[derive(Debug, Clone)]
pub struct NewPair {
    /// Its room.
    pub room: RoomName,
    /// What its client can speak, in order.
    pub offers: Vec<Format>,
    /// Its application's own data.
    pub meta: Map<String, Value>,
    /// How long it waits for a client socket.
    pub linger: Option<Duration>,
    /// On whose behalf it is made.
    pub authority: Authority,
}

/// A pair as the registry has it.
#[derive(Debug, Clone)]
pub struct Found {
    /// The record.
    pub record: Record,
    /// What it says.
    pub facts: Facts,
}
