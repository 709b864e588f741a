//! Watches: who listens to a pair's events on this node.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::protocol::{Event, EventKind, NodeId, Position};

/// What a listener hears.
#[derive(Debug, Clone)]
pub enum Heard {
    /// An event, its place, and the place of the one before it.
    Event(Arc<Event>, Position, Position),
    /// The newest place there is, as a look at the history told: a lost last event shows by it.
    Head(Position),
    /// Events may have been lost: read again.
    Lost,
    /// Something about the connection, which is not kept.
    Aside(EventKind, Arc<Value>),
}

/// One listener. A full mailbox loses what is told, and the listener learns that it did.
pub struct Seat {
    /// Its own number.
    pub number: u64,
    /// Where it listens.
    pub mailbox: mpsc::Sender<Heard>,
    /// Set when the mailbox was full.
    pub missed: Arc<AtomicBool>,
}

/// The listeners of one pair.
#[derive(Default)]
pub struct Watch {
    seats: Vec<Seat>,
    home: Mutex<Option<NodeId>>,
}

impl Watch {
    pub(super) fn add(&mut self, seat: Seat) {
        self.seats.push(seat);
    }

    /// Removes a listener; true when none is left.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        self.seats.retain(|seat| seat.number != number);
        self.seats.is_empty()
    }

    pub(super) fn tell(&self, heard: &Heard) {
        for seat in &self.seats {
            if seat.mailbox.try_send(heard.clone()).is_err() {
                seat.missed.store(true, Relaxed);
            }
        }
    }

    pub(super) fn home(&self) -> Option<NodeId> {
        *self.home.lock()
    }

    pub(super) fn set_home(&self, node: Option<NodeId>) {
        *self.home.lock() = node;
    }
}
