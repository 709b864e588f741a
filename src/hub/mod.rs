//! Floor 1: who is here, in this node's memory.
//!
//! The clients and siblings whose sockets this node has, who sits in which room, and the fan-out of frames to them.
//! Nothing here waits for anything outside, and nothing here knows that other nodes exist.

mod bell;
mod hearing;
mod level;
mod mailbox;
mod outbox;
mod postmen;
mod queue;
mod room;
mod seldom;
mod watch;

use std::sync::Arc;

use dashmap::{DashMap, Entry};

pub use bell::Bell;
pub use hearing::{Hearing, Source};
pub use level::{Dropped, Level, Resumed};
pub use mailbox::{Mailbox, Slot, Unsent, mailbox};
pub use outbox::{Disconnected, Flushed, Outbox, Wire};
pub use postmen::Postmen;
pub use queue::{Item, Reached};
pub use room::Room;
pub use seldom::{AtFirst, Seldom};
pub use watch::{Ear, Heard, Piece, Seat, Watch};

use crate::protocol::{Fence, NodeId, PairId, RoomName, Topic};

/// A client socket of this node, as the rest of the node reaches its actor. `M` is the actor's mail.
pub struct Client<M> {
    /// Which of the pair's client sockets.
    pub fence: Fence,
    /// To its actor.
    pub slot: Slot<M>,
}

/// This node's memory. `M` is the mail that client actors take.
pub struct Hub<M> {
    rooms: DashMap<RoomName, Arc<Room>>,
    clients: DashMap<PairId, Client<M>>,
    watches: DashMap<Topic, Box<Watch>>,
    /// Who carries frames to the wires.
    pub postmen: Arc<Postmen>,
}

impl<M> Default for Hub<M> {
    fn default() -> Self {
        // One for each core: what they do is all work and no waiting.
        let postmen = Postmen::new(std::thread::available_parallelism().map_or(1, usize::from));
        Self { rooms: DashMap::new(), clients: DashMap::new(), watches: DashMap::new(), postmen: Arc::new(postmen) }
    }
}

impl<M> Hub<M> {
    /// The room of this name, if it has members here.
    #[must_use]
    pub fn room(&self, name: &RoomName) -> Option<Arc<Room>> {
        self.rooms.get(name).map(|room| Arc::clone(&room))
    }

    /// The rooms that have members here.
    #[must_use]
    pub fn room_names(&self) -> Vec<RoomName> {
        self.rooms.iter().map(|room| room.key().clone()).collect()
    }

    /// Seats a client in a room: frames reach its outbox from now on.
    pub fn enter(&self, name: &RoomName, pair: PairId, outbox: &Arc<Outbox>) -> Arc<Room> {
        // The entry stays locked while the member is added, so that an emptied room can't be removed in between.
        let room = self.rooms.entry(name.clone()).or_insert_with(|| Arc::new(Room::new(name.clone(), &self.postmen)));
        room.add(pair, outbox);
        Arc::clone(&room)
    }

    /// Has the actors of all clients look around.
    pub fn ring_all(&self) {
        for room in &self.rooms {
            room.ring_all();
        }
    }

    /// Takes a client out of a room: when this returns, no frame of the room reaches its outbox any more.
    pub fn exit(&self, room: &Room, outbox: &Arc<Outbox>) {
        if let Entry::Occupied(entry) = self.rooms.entry(room.name().clone())
            && entry.get().remove(outbox)
        {
            entry.remove();
        }
    }

    /// Makes a client reachable, unless a newer socket of its pair is. An older one is returned: when it is dropped
    /// its mailbox closes, which tells its actor that its time is over.
    pub fn register(&self, pair: PairId, client: Client<M>) -> Option<Client<M>> {
        match self.clients.entry(pair) {
            Entry::Occupied(newer) if newer.get().fence.epoch > client.fence.epoch => None,
            Entry::Occupied(mut older) => Some(older.insert(client)),
            Entry::Vacant(place) => {
                place.insert(client);
                None
            }
        }
    }

    /// Makes a client unreachable, unless a newer socket of its pair took its place. Its mailbox closes, as above.
    pub fn unregister(&self, pair: PairId, fence: Fence) {
        self.clients.remove_if(&pair, |_, client| client.fence == fence);
    }

    /// Leaves mail for a client, without waiting. Mail that can't be left comes back.
    ///
    /// # Errors
    /// [`Absent`] when the pair's client socket is not here, or its mailbox is full.
    pub fn send(&self, pair: PairId, mail: M) -> Result<(), Absent<M>> {
        let Some(client) = self.clients.get(&pair) else { return Err(Absent::NotHere(mail)) };
        client.slot.send(mail).map_err(|unsent| match unsent {
            Unsent::Full(mail) => Absent::Busy(mail),
            Unsent::Closed(mail) => Absent::NotHere(mail),
        })
    }

    /// Whether the pair's client socket is here.
    #[must_use]
    pub fn has(&self, pair: PairId) -> bool {
        self.clients.contains_key(&pair)
    }

    /// Which of the pair's client sockets is here.
    #[must_use]
    pub fn fence(&self, pair: PairId) -> Option<Fence> {
        self.clients.get(&pair).map(|client| client.fence)
    }

    /// The client sockets that are here.
    #[must_use]
    pub fn clients(&self) -> Vec<(PairId, Fence)> {
        self.clients.iter().map(|client| (*client.key(), client.fence)).collect()
    }

    /// How many client sockets are here.
    #[must_use]
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// Adds a listener to a topic's history.
    pub fn attach(&self, topic: &Topic, seat: Seat) {
        self.watches.entry(topic.clone()).or_default().add(seat);
    }

    /// Removes a listener.
    pub fn detach(&self, topic: &Topic, seat: u64) {
        if let Entry::Occupied(mut entry) = self.watches.entry(topic.clone())
            && entry.get_mut().remove(seat)
        {
            entry.remove();
        }
    }

    /// Tells all listeners of a topic.
    pub fn tell(&self, topic: &Topic, heard: &Heard) {
        if let Some(watch) = self.watches.get(topic) {
            watch.tell(heard);
        }
    }

    /// How many listeners of a topic fit.
    pub fn count(&self, topic: &Topic, fits: impl Fn(&Ear) -> bool) -> u64 {
        self.watches.get(topic).map_or(0, |watch| watch.count(fits))
    }

    /// Tells all listeners of all topics.
    pub fn tell_all(&self, heard: &Heard) {
        for watch in &self.watches {
            watch.tell(heard);
        }
    }

    /// The topics whose histories have listeners here.
    #[must_use]
    pub fn watched(&self) -> Vec<Topic> {
        self.watches.iter().map(|watch| watch.key().clone()).collect()
    }

    /// The node that was last heard to have the pair's client socket, where somebody here listens to the pair.
    #[must_use]
    pub fn home(&self, pair: PairId) -> Option<NodeId> {
        self.watches.get(&Topic::Pair(pair))?.home()
    }

    /// Remembers, or forgets, which node has the pair's client socket.
    pub fn set_home(&self, pair: PairId, node: Option<NodeId>) {
        if let Some(watch) = self.watches.get(&Topic::Pair(pair)) {
            watch.set_home(node);
        }
    }
}

/// Why mail was not left, with the mail.
#[derive(Debug)]
pub enum Absent<M> {
    /// The pair's client socket is not on this node.
    NotHere(M),
    /// Its mailbox is full.
    Busy(M),
}
