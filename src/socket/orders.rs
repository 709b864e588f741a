//! What concerns commands in the actor of a client socket. Each is answered after its effect; an effect that siblings
//! should hear of is answered after its event stands.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    client::{Client, Ending, JobDone},
    inflow::Held,
    kept::Kept,
    terms::sent_away,
    write::Writer,
};
use crate::{
    node::{Entrant, Entry, Facts, Node, Noted, Past, ReplyTo, Trace, Wish, ended_because, may_not_publish},
    protocol::{
        Cause, CloseCode, CloseParams, Closing, Command, Direction, EventKind, Failure, Fault, Fence, Format,
        MoveParams, PairId, PauseParams, PausePolicy, Payload, Position, Rate, Reply, ResumeParams, RoomName, Run,
        SetParams, Stand,
    },
};

/// How many commands may wait for the registry, and for pongs.
const MOST_WAITING: usize = 64;

/// The outcome of entering another room, for the cluster.
pub(super) struct Entered {
    entry: Result<Moving, Failure>,
    cause: Cause,
    reply: ReplyTo,
}

/// A room that was entered, for the cluster; and where its history begins for this client, if it has one.
pub(super) struct Moving {
    pub(super) entry: Entry,
    pub(super) past: Option<(Past, Option<Trace>)>,
    /// Where the talk of the room that it leaves was then.
    pub(super) left: Option<(RoomName, Position)>,
}

/// Enters a room, for the cluster, and finds where its history begins.
pub(super) async fn enter_there(
    node: &Arc<Node>,
    (pair, fence): (PairId, Fence),
    room: &RoomName,
    offers: &[Format],
    facts: &Facts,
) -> Result<Moving, Failure> {
    let enter = async {
        let entrant = Entrant { authority: &facts.authority, offers };
        let state = node.room(room).await?;
        node.enter((pair, fence), room, &entrant, state.ruling).await
    };
    let (entry, left) = tokio::join!(enter, node.talk_head(&facts.room));
    let left = left.map(|at| (facts.room.clone(), at));
    begin_there(node, (pair, fence), entry?, left, facts).await
}

async fn begin_there(
    node: &Arc<Node>,
    (pair, fence): (PairId, Fence),
    entry: Entry,
    left: Option<(RoomName, Position)>,
    facts: &Facts,
) -> Result<Moving, Failure> {
    let history = entry.ruling.spec.keeps().filter(|_| entry.room != facts.room);
    let Some(history) = history else { return Ok(Moving { entry, past: None, left }) };
    let mut there = Facts { room: entry.room.clone(), trace: None, ..facts.clone() };
    match node.begin_past((pair, fence.epoch), &mut there, history, Wish::default()).await {
        Ok(past) => Ok(Moving { entry, past: Some((past, there.trace)), left }),
        Err(failure) => {
            _ = node.exit(pair, fence, &entry.room).await;
            Err(failure)
        }
    }
}

impl Client {
    /// Carries out a command.
    pub(super) fn obey(
        &mut self,
        command: Command,
        cause: Cause,
        reply: ReplyTo,
        writer: &mut Writer,
    ) -> Option<Ending> {
        if !command.changes_nothing() && !self.node.may_obey(&reply) {
            self.node.reply(reply, Reply::Again);
            return None;
        }
        if self.switching.is_some() && !matches!(command, Command::PairGet | Command::PairEnd(_)) {
            // It is for the next socket.
            self.node.reply(reply, Reply::NotHere);
            return None;
        }
        let outcome = match command {
            Command::PairGet => Ok(self.state()),
            Command::Send(payload) => return self.send(&payload, reply),
            Command::Push(payload) => self.push(&payload),
            Command::Move(params) => return self.begin_move(params, cause, reply),
            Command::Pause(params) => return self.pause(params, cause, reply),
            Command::Resume(params) => return self.resume(params, cause, reply),
            Command::Mark(params) => {
                self.mark(params, cause, reply);
                return None;
            }
            Command::Set(params) => return self.set(params, cause, reply),
            Command::Watch(_) | Command::Unwatch(_) | Command::Ack(_) => return self.note(&command, cause, reply),
            Command::Switch(params) => return self.begin_switch(params, cause, reply),
            Command::Close(params) => return Some(close(params, cause, reply)),
            Command::PairEnd(params) => {
                let reason = ended_because(params.reason);
                let closing = Closing::because(CloseCode::PairEnded, &reason);
                let (cause, reply) = (Some(cause), Some(reply));
                return Some(Ending::Close { closing, by: "sibling", cause, reply, pair_ends: Some(reason) });
            }
            Command::Ping => return self.ping(reply, writer),
            Command::Leave(params) if params.room == *self.room.name() => {
                let (closing, cause, reply) = (sent_away(params), Some(cause), Some(reply));
                return Some(Ending::Close { closing, by: "room", cause, reply, pair_ends: None });
            }
            Command::Leave(_) => Err(Failure::new(Fault::NotFound, "the client has left the room")),
            Command::PairTicket(_)
            | Command::RoomGet
            | Command::RoomMembers(_)
            | Command::RoomSet(_)
            | Command::RoomKick(_)
            | Command::RoomClose(_)
            | Command::Signal(_)
            | Command::Unpark { .. }
            | Command::Discover => {
                Err(Failure::new(Fault::Internal, "this command is not for the client socket's node"))
            }
        };
        self.node.reply(reply, outcome.map_or_else(Reply::Failed, Reply::Done));
        None
    }

    fn state(&self) -> Value {
        let level = self.outbox.level();
        json!({
            "pair": self.pair, "room": self.room.name(), "format": self.facts.format, "epoch": self.fence.epoch,
            "client": "live", "node": self.node.id, "meta": self.facts.meta,
            "counters": {
                "frames_in": self.inflow.frames, "bytes_in": self.inflow.bytes,
                "frames_out": level.taken_frames, "bytes_out": level.taken_bytes,
                "queued_frames": level.queued_frames, "queued_bytes": level.queued_bytes,
                "dropped_frames": level.dropped.frames + level.dropped_in_pauses.frames,
                "dropped_bytes": level.dropped.bytes + level.dropped_in_pauses.bytes,
                "dropped_frames_in": self.inflow.dropped.frames, "dropped_bytes_in": self.inflow.dropped.bytes,
            },
            "rtt_ms": self.heart.rtt.map(milliseconds),
            "paused": {"in": self.inflow.paused, "out": self.outbox.paused()},
            "settings": self.terms.settings,
            "unread": self.facts.acked,
        })
    }

    /// A payload as a run, if it may travel in this pipe.
    fn encode(&self, payload: &Payload) -> Result<Run, Failure> {
        let format = self.facts.format;
        if !format.carries(payload.kind) {
            let other = if format == Format::Binary { "base64" } else { "text" };
            return Err(Failure::new(Fault::InvalidParams, format!("the pipe speaks {format}: use {other}")));
        }
        let most = self.terms.largest;
        if payload.bytes.len() > most {
            return Err(Failure::new(Fault::TooLarge, format!("a frame has at most {most} bytes")));
        }
        Ok(Run::of(payload.kind, &payload.bytes))
    }

    fn send(&mut self, payload: &Payload, reply: ReplyTo) -> Option<Ending> {
        match self.may_send_now(payload) {
            Ok(run) => self.publish_and_reply(&run, Some(reply)),
            Err(failure) => self.node.reply(reply, Reply::Failed(failure)),
        }
        None
    }

    fn may_send_now(&mut self, payload: &Payload) -> Result<Run, Failure> {
        if !self.terms.may_publish {
            return Err(may_not_publish());
        }
        let run = self.encode(payload)?;
        if self.kept.as_deref().is_some_and(Kept::is_full) {
            return Err(Failure::new(Fault::RateLimited, "frames wait for the broker: wait for replies"));
        }
        if self.pace.limited() {
            if self.pace.wait().is_some() {
                return Err(Failure::new(Fault::RateLimited, "the client has used up its rate: wait"));
            }
            self.pace.spend(1, payload.bytes.len() as u64);
        }
        Ok(run)
    }

    fn push(&mut self, payload: &Payload) -> Result<Value, Failure> {
        let run = self.encode(payload)?;
        if !self.outbox.fits(run.len()) {
            return Err(Failure::new(Fault::RateLimited, "the client's queue is full: wait for client.caught_up"));
        }
        self.writing = true;
        let position = self.outbox.push_through(&run);
        // It is none of the room's.
        self.anchor(true);
        Ok(json!({"position": position}))
    }

    fn begin_move(&mut self, params: MoveParams, cause: Cause, reply: ReplyTo) -> Option<Ending> {
        if self.jobs.len() >= MOST_WAITING {
            self.node.reply(reply, Reply::Failed(Failure::new(Fault::RateLimited, "too many moves at once")));
            return None;
        }
        let (node, pair, fence, facts) = (self.node.clone(), self.pair, self.fence, self.facts.clone());
        self.jobs.push_back(Box::pin(async move {
            let entry = enter_there(&node, (pair, fence), &params.room, &facts.speaks(), &facts).await;
            JobDone::Entered(Entered { entry, cause, reply })
        }));
        None
    }

    /// A job is done: for a move, the switch itself, between two frames.
    pub(super) fn job_done(&mut self, done: JobDone) -> Option<Ending> {
        let done = match done {
            JobDone::Entered(_) | JobDone::Switched(_) if self.switching.is_some() => {
                self.come_too_late(done);
                return None;
            }
            done => done,
        };
        let Entered { entry, cause, reply } = match done {
            JobDone::Entered(entered) => entered,
            JobDone::Switched(entered) => {
                self.switch(entered);
                return None;
            }
            JobDone::Left => return None,
            JobDone::Doubted { state, cause, gone } => {
                return if gone { self.live_in(state, cause) } else { None };
            }
            JobDone::Restored(known) => {
                self.restoring = false;
                if known == Some(true) {
                    self.story.begin_anew();
                }
                return (known == Some(false)).then_some(Ending::Disowned);
            }
            JobDone::Saved => {
                self.saving = false;
                if std::mem::take(&mut self.unsaved) {
                    self.save_facts();
                }
                return None;
            }
        };
        let Moving { entry, past, left } = match entry {
            Ok(moving) => moving,
            Err(failure) => {
                self.node.reply(reply, Reply::Failed(failure));
                return None;
            }
        };
        let from = self.room.name().clone();
        let same = from == entry.room;
        if !same {
            self.node.hub.exit(&self.room, &self.outbox);
        }
        let position = self.outbox.position();
        match same {
            // Who moves to where it is misses no frame.
            true => self.node.keep_seat(&entry),
            false => {
                self.leave_kept();
                self.outbox.set_deaf(past.is_some());
                self.room = self.node.take_seat(self.pair, &entry, &self.outbox);
                self.facts.trace = None;
            }
        }
        let (room, talk) = (entry.room, entry.talk);
        (self.facts.room, self.facts.format) = (room.clone(), entry.format);
        if let Some((past, trace)) = past {
            self.facts.trace = trace.map(|trace| trace.from_count(position));
            self.begin_kept(past);
        }
        if from != room {
            self.facts.since = Some(talk);
        }
        let stand = Stand::unsaid(room.clone(), talk, left.filter(|(left, _)| *left == from && from != room));
        self.live_under(entry.ruling);
        // A move to where it is already added one member too many to this node's count of listeners, not to the room.
        self.save_facts();
        self.leave_later(from.clone());
        let result = json!({"from": from, "to": room, "position": position});
        self.story.raise_moved(result, stand, cause, reply);
        None
    }

    /// Another room was entered for nothing.
    fn come_too_late(&mut self, done: JobDone) {
        let (entry, reply) = match done {
            JobDone::Entered(Entered { entry, reply, .. }) => (entry, reply),
            JobDone::Switched(entered) => entered.split(),
            _ => return,
        };
        if let Ok(Moving { entry, .. }) = entry {
            self.leave_later(entry.room);
        }
        self.node.reply(reply, Reply::NotHere);
    }

    /// Leaves a room that was entered, for the cluster. One where the client is was entered once too often: then this
    /// node has one listener to it less, and the room as many members as before.
    pub(super) fn leave_later(&mut self, room: RoomName) {
        let (node, pair, fence, here) = (self.node.clone(), self.pair, self.fence, self.facts.room == room);
        self.jobs.push_back(Box::pin(async move {
            if here {
                node.lose_interest(&room).await;
            } else {
                _ = node.exit(pair, fence, &room).await;
            }
            JobDone::Left
        }));
    }

    fn pause(&mut self, params: PauseParams, cause: Cause, reply: ReplyTo) -> Option<Ending> {
        let PauseParams { direction, policy } = params;
        let inward = matches!(direction, Direction::In | Direction::Both).then(|| {
            let waited = self.inflow.pause(policy);
            self.let_go(waited);
            self.inflow.position()
        });
        let outward = matches!(direction, Direction::Out | Direction::Both).then(|| {
            self.writing = true;
            self.outbox.pause(policy)
        });
        if outward.is_some() && policy == PausePolicy::Drop {
            self.anchor(false);
        }
        let result = positions(inward, outward);
        let mut data = result.clone();
        (data["direction"], data["policy"]) = (json!(direction), json!(policy));
        self.story.raise_and_reply(EventKind::ClientPaused, data, cause, reply, Reply::Done(result));
        None
    }

    fn resume(&mut self, params: ResumeParams, cause: Cause, reply: ReplyTo) -> Option<Ending> {
        let (mut buffered, mut dropped) = (0, 0);
        let mut inward = None;
        if matches!(params.direction, Direction::In | Direction::Both) {
            inward = Some(self.inflow.position());
            let waited = self.inflow.resume();
            buffered += waited.iter().map(Held::frames).sum::<u64>();
            dropped += std::mem::take(&mut self.inflow.dropped_in_pause);
            self.let_go(waited);
        }
        let outward = matches!(params.direction, Direction::Out | Direction::Both).then(|| {
            let resumed = self.outbox.resume();
            buffered += resumed.waited;
            dropped += resumed.dropped;
            self.writing = true;
            if resumed.dropped > 0 {
                self.anchor(true);
            }
            resumed.position
        });
        let mut result = positions(inward, outward);
        (result["buffered"], result["dropped"]) = (json!(buffered), json!(dropped));
        let mut data = result.clone();
        data["direction"] = json!(params.direction);
        self.story.raise_and_reply(EventKind::ClientUnpaused, data, cause, reply, Reply::Done(result));
        None
    }

    fn set(&mut self, params: SetParams, cause: Cause, reply: ReplyTo) -> Option<Ending> {
        let chosen = &mut self.facts.chosen;
        chosen.queue_bytes = params.queue_bytes.or(chosen.queue_bytes);
        chosen.slow = params.slow.or(chosen.slow);
        chosen.ping = params.ping.or(chosen.ping);
        if let Some(rate) = params.rate {
            chosen.rate = rate.filter(|rate| *rate != Rate::default());
        }
        self.live_under(self.terms.ruling.clone());
        if let Some(meta) = params.meta {
            self.facts.meta = meta;
        }
        self.save_facts();
        let data = json!({"settings": self.terms.settings, "meta": self.facts.meta});
        self.changed(cause, reply, data)
    }

    fn note(&mut self, command: &Command, cause: Cause, reply: ReplyTo) -> Option<Ending> {
        let noted = self.facts.note(self.pair, command, &self.node.settings.ticket_keys);
        self.outbox.watch_marks(self.facts.watching.marks);
        self.save_facts();
        match noted {
            Ok(Noted { reply: result, told: true }) => return self.changed(cause, reply, result),
            Ok(Noted { reply: result, told: false }) => self.node.reply(reply, Reply::Done(result)),
            Err(failure) => self.node.reply(reply, Reply::Failed(failure)),
        }
        None
    }

    fn changed(&mut self, cause: Cause, reply: ReplyTo, result: Value) -> Option<Ending> {
        let Facts { meta, watching, .. } = &self.facts;
        let data = json!({"settings": self.terms.settings, "meta": meta, "watching": watching});
        self.story.raise_and_reply(EventKind::ClientChanged, data, cause, reply, Reply::Done(result));
        None
    }

    /// Has the registry told what it lost of this socket.
    pub(super) fn restore(&mut self) {
        if std::mem::replace(&mut self.restoring, true) {
            return;
        }
        let (node, pair, fence, facts) = (self.node.clone(), self.pair, self.fence, self.facts.clone());
        let ruling = self.terms.ruling.clone();
        // What fails now is tried again when the next event finds the record missing, or the next lease is lost.
        self.jobs.push_back(Box::pin(async move {
            JobDone::Restored(node.restore(pair, fence, &facts, Some(&ruling)).await.ok())
        }));
    }

    /// Has the changed facts written. Changes that come while that is under way are written together after it.
    pub(super) fn save_facts(&mut self) {
        if std::mem::replace(&mut self.saving, true) {
            self.unsaved = true;
            return;
        }
        let (node, pair, fence, facts) = (self.node.clone(), self.pair, self.fence, self.facts.clone());
        self.jobs.push_back(Box::pin(async move {
            node.revise(pair, fence, &facts).await;
            JobDone::Saved
        }));
    }

    fn ping(&mut self, reply: ReplyTo, writer: &mut Writer) -> Option<Ending> {
        if self.pings.len() >= MOST_WAITING {
            let failure = Failure::new(Fault::RateLimited, "too many pings at once");
            self.node.reply(reply, Reply::Failed(failure));
            return None;
        }
        if !self.may_read() {
            let failure =
                Failure::new(Fault::Conflict, "the client's socket is not read now: a pong could not be heard");
            self.node.reply(reply, Reply::Failed(failure));
            return None;
        }
        let payload = self.heart.ping();
        writer.ping(&payload);
        self.writing = true;
        self.pings.push((u64::from_be_bytes(payload), Instant::now(), reply));
        None
    }

    /// A pong answers its ping and all before it.
    pub(super) fn ponged(&mut self, payload: &[u8]) {
        self.heart.ponged(payload);
        let Ok(number) = payload.try_into().map(u64::from_be_bytes) else { return };
        for (_, sent, reply) in self.pings.extract_if(.., |(ping, ..)| *ping <= number) {
            self.node.reply(reply, Reply::Done(json!({"rtt_ms": milliseconds(sent.elapsed())})));
        }
    }

    /// The socket ends: jobs that would only change it are told so, those that clean up are done.
    pub(super) async fn abandon_jobs(&mut self) {
        if std::mem::take(&mut self.unsaved) {
            self.saving = false;
            self.save_facts();
        }
        while let Some(job) = self.jobs.pop_front() {
            match job.await {
                done @ (JobDone::Entered(_) | JobDone::Switched(_)) => self.come_too_late(done),
                _ => {}
            }
        }
        for (.., reply) in self.pings.drain(..) {
            self.node.reply(reply, Reply::NotHere);
        }
    }
}

fn close(params: CloseParams, cause: Cause, reply: ReplyTo) -> Ending {
    let reason = params.reason.unwrap_or_default();
    let closing = match params.code {
        None | Some(1000) => Closing::because(CloseCode::Normal, &reason),
        Some(code) => Closing::application(code, &reason),
    };
    Ending::Close { closing, by: "sibling", cause: Some(cause), reply: Some(reply), pair_ends: None }
}

/// The positions of one or both directions; with both, `position` is that towards the client.
fn positions(inward: Option<u64>, outward: Option<u64>) -> Value {
    match (inward, outward) {
        (Some(inward), Some(outward)) => json!({"position": outward, "position_in": inward}),
        (position, None) | (None, position) => json!({"position": position}),
    }
}

fn milliseconds(time: std::time::Duration) -> f64 {
    time.as_micros() as f64 / 1_000.0
}
