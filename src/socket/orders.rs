//! What concerns commands in the actor of a client socket. Each is answered after its effect; an effect that siblings
//! should hear of is answered after its event stands.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{client::Client, ending::Ending, inflow::Held, kept::Kept, terms::sent_away, write::Writer};
use crate::{
    node::{Facts, Noted, ReplyTo, ended_because, may_not_publish},
    protocol::{
        Cause, CloseCode, CloseParams, Closing, Command, Direction, EventKind, Failure, Fault, Format, PauseParams,
        PausePolicy, Payload, Rate, Reply, ResumeParams, Run, SetParams,
    },
};

/// How many commands may wait for the registry, and for pongs.
pub(super) const MOST_WAITING: usize = 128;

impl Client {
    /// Carries out a command.
    pub(super) fn obey(
        &mut self,
        command: Command,
        cause: Cause,
        reply: ReplyTo,
        writer: &mut Writer,
    ) -> Option<Ending> {
        let may_obey = command.changes_nothing() || self.node.may_obey(&reply);
        if !self.node.serves((self.pair, self.fence)) {
            // Others took the pair; this actor is about to hear of that.
            self.node.reply(reply, Reply::NotHere);
            return None;
        }
        if !may_obey {
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
                "dropped_frames_in": self.inflow.stop.dropped.frames, "dropped_bytes_in": self.inflow.stop.dropped.bytes,
            },
            "rtt_ms": self.heart.rtt.map(milliseconds),
            "paused": {"in": self.inflow.paused, "out": self.outbox.paused()},
            "settings": self.settings(),
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
        let result = self.go_on(params.direction);
        let mut data = result.clone();
        data["direction"] = json!(params.direction);
        self.story.raise_and_reply(EventKind::ClientUnpaused, data, cause, reply, Reply::Done(result));
        None
    }

    /// Lets frames go on, and says where and how many.
    pub(super) fn go_on(&mut self, direction: Direction) -> Value {
        let (mut buffered, mut dropped) = (0, 0);
        let mut inward = None;
        if matches!(direction, Direction::In | Direction::Both) {
            inward = Some(self.inflow.position());
            let waited = self.inflow.resume();
            buffered += waited.iter().map(Held::frames).sum::<u64>();
            dropped += self.inflow.stop.there().map_or(0, |stop| std::mem::take(&mut stop.dropped_in_pause));
            self.let_go(waited);
        }
        let outward = matches!(direction, Direction::Out | Direction::Both).then(|| {
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
        result
    }

    fn set(&mut self, params: SetParams, cause: Cause, reply: ReplyTo) -> Option<Ending> {
        let chosen = self.facts.chosen.get_or_insert_default();
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
        let data = json!({"settings": self.settings(), "meta": self.facts.meta});
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
        let data = json!({"settings": self.settings(), "meta": meta, "watching": watching});
        self.story.raise_and_reply(EventKind::ClientChanged, data, cause, reply, Reply::Done(result));
        None
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
        let payload = self.heart.ping(self.node.settings.pong);
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
        if self.pings.is_empty() {
            self.pings = Vec::new();
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
