//! The hand-over of a pipe to another socket: for what a live pipe can't change.
//!
//! From one frame on, what the room says is for the next socket: it waits in an outbox of its own, or is kept by the
//! room. The present socket is closed behind all that it was given before, and its peer may go on sending until it has
//! answered: what it sends belongs to the room where it was.

use std::sync::Arc;

use serde_json::json;
use tokio::time::{Duration, Instant};

use super::{
    client::Client,
    ending::Ending,
    jobs::{JobDone, Moving, enter_there},
    write::Writer,
};
use crate::{
    hub::{Hearing, Outbox, Room},
    node::{Facts, Node, Parked, ReplyTo, Stop, Trace},
    protocol::{
        Cause, CloseCode, Closing, Direction, EventKind, Failure, Fault, Format, Grants, Reply, RoomName, Settings,
        Side, Stand, SwitchParams, Unsaid,
    },
};

/// How long a peer may take to answer the close.
const GRACE: Duration = Duration::from_secs(5);
/// How long it may take when the next socket is there already.
const HASTE: Duration = Duration::from_secs(1);
/// How many sockets may wait for its place.
const MOST_WAITING: usize = 16;

/// The outcome of entering the room where the next socket is to be, for the cluster.
pub(super) struct Entered {
    /// `None` when it stays where it is, and as it is.
    entry: Result<Option<Moving>, Failure>,
    offers: Option<Vec<Format>>,
    subprotocol: Option<String>,
    ttl: Option<u64>,
    cause: Cause,
    reply: ReplyTo,
}

impl Entered {
    /// What was entered, and who waits for it.
    pub(super) fn split(self) -> (Result<Moving, Failure>, ReplyTo) {
        let nothing = || Failure::new(Fault::ClientDetached, "the client socket is gone");
        (self.entry.and_then(|entry| entry.ok_or_else(nothing)), self.reply)
    }
}

/// A hand-over under way.
pub(super) struct Switching {
    /// What the pair is then.
    facts: Facts,
    /// What waits for the next socket, in its seat; `None` where the room keeps it.
    waiting: Option<(Arc<Room>, Arc<Outbox>)>,
    /// Where the pair stands then, if it leaves the room.
    pub(super) stand: Option<Box<Unsaid>>,
    /// When the peer has taken too long.
    pub(super) until: Instant,
    pub(super) cause: Cause,
    /// Whether the peer has been told.
    told: bool,
    /// Sockets that want its place.
    pub(super) waited_for: Vec<ReplyTo>,
}

impl Switching {
    /// Another socket wants its place already.
    pub(super) fn is_waited_for(&mut self, node: &Arc<Node>, reply: ReplyTo) {
        self.until = self.until.min(Instant::now() + HASTE);
        if self.waited_for.len() < MOST_WAITING {
            self.waited_for.push(reply);
        } else {
            node.reply(reply, Reply::Again);
        }
    }
}

impl Client {
    /// A pause is the socket's, and ends with it: what waits goes its way before.
    fn end_pauses(&mut self, cause: &Cause) {
        let direction = match (self.inflow.paused.is_some(), self.outbox.paused().is_some()) {
            (true, true) => Direction::Both,
            (true, false) => Direction::In,
            (false, true) => Direction::Out,
            (false, false) => return,
        };
        let mut data = self.go_on(direction);
        data["direction"] = json!(direction);
        self.story.raise(EventKind::ClientUnpaused, data, Some(cause.clone()));
    }

    /// Tells the peer, behind all that it was given.
    pub(super) fn tell_of_switch(&mut self, writer: &mut Writer) {
        if let Some(switching) = self.switching.as_deref_mut().filter(|switching| !switching.told) {
            switching.told = true;
            writer.close(&Closing::new(CloseCode::Switched));
            self.writing = true;
        }
    }

    /// The socket is over: what waits for the next one, which is the pair's from now on.
    pub(super) fn hand_over(&mut self, switching: Switching, given: u64, clean: bool) -> Option<Parked> {
        let (epoch, mut facts) = (self.fence.epoch, switching.facts);
        if facts.room == self.facts.room {
            facts.trace = self.facts.trace.take();
        } else if let Some(trace) = facts.trace.take() {
            let stop = Some(Stop { epoch, count: given, clean });
            facts.trace = Some(Box::new(Trace { stop, ..trace.from_count(given) }));
        }
        self.facts = facts;
        let (fence, unwritten) = (self.fence, self.outbox.level().queued_frames);
        let parked = switching.waiting.map(|(room, outbox)| Parked { fence, room, outbox, given, unwritten, clean });
        self.facts.parked = parked.as_ref().map(|_| self.node.id);
        self.save_facts();
        parked
    }

    /// There is no next socket.
    pub(super) fn forget_switch(&mut self, switching: Switching) {
        if let Some((room, outbox)) = switching.waiting {
            self.node.hub.exit(&room, &outbox);
        }
        self.facts.room = switching.facts.room;
    }

    /// The rooms that the client is a member of, for the cluster, but the one where its pipe waits for a socket.
    pub(super) fn rooms_to_leave(&self, parked: Option<&Parked>) -> Vec<RoomName> {
        let mut rooms = vec![self.room.name().clone()];
        if self.facts.room != rooms[0] {
            rooms.push(self.facts.room.clone());
        }
        rooms.retain(|room| parked.is_none_or(|parked| parked.room.name() != room));
        rooms
    }

    pub(super) fn begin_switch(&mut self, params: SwitchParams, cause: Cause, reply: ReplyTo) -> Option<Ending> {
        if self.facts.linger_seconds == 0 {
            let message = "the pair does not wait for another client socket: make it with a linger";
            self.node.reply(reply, Reply::Failed(Failure::new(Fault::Conflict, message)));
            return None;
        }
        let reply = self.place_for_a_job(reply)?;
        let (node, socket, facts) = (self.node.clone(), (self.pair, self.fence), self.facts.clone());
        let SwitchParams { format, room, subprotocol, ttl } = params;
        let offers = format.map(Vec::from);
        self.jobs.push_back(Box::pin(async move {
            let entry = if room.is_none() && offers.is_none() {
                Ok(None)
            } else {
                let room = room.unwrap_or_else(|| facts.room.clone());
                let speaks = offers.clone().unwrap_or_else(|| facts.speaks());
                enter_there(&node, socket, &room, &speaks, &facts).await.map(Some)
            };
            JobDone::Switched(Entered { entry, offers, subprotocol, ttl, cause, reply })
        }));
        None
    }

    /// The switch itself, between two frames.
    pub(super) fn switch(&mut self, entered: Entered) {
        let Entered { entry, offers, subprotocol, ttl, cause, reply } = entered;
        let ticket = self.node.sign_ticket(Side::Client, self.pair, Grants::default(), ttl);
        let (moving, ticket) = match (entry, ticket) {
            (Ok(moving), Ok(ticket)) => (moving, ticket),
            (entry, ticket) => {
                if let Ok(Some(Moving { entry, .. })) = &entry {
                    self.leave_later(entry.room.clone());
                }
                if let Some(failure) = entry.err().or(ticket.err()) {
                    self.node.reply(reply, Reply::Failed(failure));
                }
                return;
            }
        };
        self.end_pauses(&cause);
        let mut facts = self.facts.clone();
        facts.offers = offers.unwrap_or(facts.offers);
        let from = self.room.name().clone();
        let spec = moving.as_ref().map_or(&self.terms.ruling.spec, |moving| &moving.entry.ruling.spec).clone();
        let Settings { queue_bytes, slow, .. } = self.node.settings.pipe.with(&spec, facts.chosen.as_deref());
        let waiting = spec.keeps().is_none().then(|| Arc::new(Outbox::new(queue_bytes, slow)));
        if let Some(outbox) = &waiting {
            outbox.watch_marks(facts.watching.marks);
        }
        let mut stand = None;
        let room = match moving {
            Some(Moving { entry, past, left }) if entry.room != from => {
                facts.since = Some(entry.talk);
                stand = Stand::unsaid(entry.room.clone(), entry.talk, left.filter(|(left, _)| *left == from));
                self.outbox.hear(Hearing::Nothing);
                (facts.room, facts.format) = (entry.room.clone(), entry.format);
                facts.trace = past.and_then(|(_, trace)| trace);
                waiting.as_ref().map(|outbox| self.node.take_seat(self.pair, &entry, outbox))
            }
            moving => {
                if let Some(Moving { entry, .. }) = moving {
                    facts.format = entry.format;
                    // It was entered once more.
                    self.leave_later(entry.room);
                }
                match &waiting {
                    Some(outbox) => self.room.replace(&self.outbox, outbox),
                    None => self.outbox.hear(Hearing::Nothing),
                }
                waiting.as_ref().map(|_| Arc::clone(&self.room))
            }
        };
        let mut data = json!({"epoch": self.fence.epoch, "from": from, "room": facts.room, "format": facts.format});
        if let Some(subprotocol) = subprotocol {
            data["subprotocol"] = json!(subprotocol);
        }
        let mut result = data.clone();
        result["client"] = ticket;
        result["within"] = json!(facts.linger_seconds);
        if let Some(kept) = self.kept.as_deref_mut() {
            kept.stop_catching();
        }
        let (waiting, until) = (room.zip(waiting), Instant::now() + GRACE);
        self.switching = Some(Box::new(Switching {
            facts,
            waiting,
            until,
            cause: cause.clone(),
            told: false,
            stand,
            waited_for: Vec::new(),
        }));
        self.story.raise_and_reply(EventKind::ClientSwitching, data, cause, reply, Reply::Done(result));
    }
}
