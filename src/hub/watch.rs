//! Watches: who listens to a topic's history on this node.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use super::Slot;
use crate::protocol::{Event, EventKind, NodeId, PairId, Position, Watching};

/// A piece of a history, as all its listeners here share it.
#[derive(Debug)]
pub struct Piece {
    /// Where it stands.
    pub position: Position,
    /// Where the one before it stands.
    pub previous: Position,
    /// What is kept.
    pub payload: Bytes,
    event: OnceLock<Option<Arc<Event>>>,
}

impl Piece {
    /// A piece at its place.
    #[must_use]
    pub fn new(position: Position, previous: Position, payload: Bytes) -> Self {
        Self { position, previous, payload, event: OnceLock::new() }
    }

    /// The event that it is, decoded once for all listeners; `None` when it is none, or one of a newer version.
    pub fn event(&self) -> Option<&Arc<Event>> {
        self.event.get_or_init(|| Event::decode(&self.payload).ok().map(Arc::new)).as_ref()
    }
}

/// What a listener hears.
#[derive(Debug, Clone)]
pub enum Heard {
    /// What was appended.
    Piece(Arc<Piece>),
    /// The newest place there is, as a look at the history told: a lost last event shows by it.
    Head(Position),
    /// Events may have been lost: read again.
    Lost,
    /// Something about the connection, which is not kept.
    Aside(EventKind, Arc<Value>),
}

/// Who listens, as far as it is counted to how many something is told.
#[derive(Debug)]
pub struct Ear {
    /// For which pair.
    pub pair: PairId,
    signals: AtomicBool,
}

impl Ear {
    /// One that hears what is watched.
    #[must_use]
    pub fn new(pair: PairId, watching: Watching) -> Self {
        Self { pair, signals: AtomicBool::new(watching.signals) }
    }

    /// Something else is watched from now on.
    pub fn set(&self, watching: Watching) {
        self.signals.store(watching.signals, Relaxed);
    }

    /// Whether it is told what is signalled to the whole room.
    #[must_use]
    pub fn hears_signals(&self) -> bool {
        self.signals.load(Relaxed)
    }
}

/// One listener. A full mailbox loses what is told, and the listener learns that it did.
pub struct Seat {
    /// Its own number.
    pub number: u64,
    /// To the listener.
    pub slot: Slot<Heard>,
    /// Who it is, if it counts.
    pub ear: Option<Arc<Ear>>,
}

/// The listeners of one topic.
#[derive(Default)]
pub struct Watch {
    seats: Vec<Seat>,
    /// The node that has the client socket, where the topic is a pair's.
    home: Mutex<Option<NodeId>>,
}

impl Watch {
    pub(super) fn add(&mut self, seat: Seat) {
        // Most pairs have one listener.
        if self.seats.is_empty() {
            self.seats.reserve_exact(1);
        }
        self.seats.push(seat);
    }

    /// Removes a listener; true when none is left.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        self.seats.retain(|seat| seat.number != number);
        self.seats.is_empty()
    }

    pub(super) fn tell(&self, heard: &Heard) {
        for seat in &self.seats {
            // The listener learns of it.
            drop(seat.slot.send(heard.clone()));
        }
    }

    pub(super) fn count(&self, fits: impl Fn(&Ear) -> bool) -> u64 {
        self.seats.iter().filter(|seat| seat.ear.as_ref().is_some_and(|ear| fits(ear))).count() as u64
    }

    pub(super) fn home(&self) -> Option<NodeId> {
        *self.home.lock()
    }

    pub(super) fn set_home(&self, node: Option<NodeId>) {
        *self.home.lock() = node;
    }
}
