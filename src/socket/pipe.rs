//! What concerns frames in the actor of a client socket: taking them from the client, and the client's lag.

use serde_json::json;
use tokio::time::{Duration, Instant};

use super::{Halves, client::Client, ending::Ending, kept::Kept, read::Incoming, write::CHUNK};
use crate::{
    hub::{AtFirst, Dropped},
    node::ReplyTo,
    protocol::{CloseCode, EventKind, FrameKind, PausePolicy, Reply, Run, RunBuilder, Violations},
};

/// A client that falls behind again and again is told of at most this often.
const QUIET: Duration = Duration::from_secs(1);

const WRONG_KIND: &str = "a frame of the wrong kind";
pub(super) const TOO_BIG: &str = "a frame over the limit";
const NOT_GRANTED: &str = "not everyone may publish in this room";
pub(super) const BEHIND: &str = "the broker did not take a frame, and the room has one order for all";

/// Turns an outbox's level into `client.lagging` and `client.caught_up`.
#[derive(Default)]
pub(super) struct LagWatch {
    /// Whether a lag was told, and its end was not.
    told: bool,
    /// How many frames were dropped when that was last looked at.
    dropped: u64,
    /// What had been dropped up to the last time that was told.
    accounted: Dropped,
    /// A lag that begins before this is told then.
    quiet_until: Option<Instant>,
}

impl AtFirst for LagWatch {
    const AT_FIRST: &'static Self = &Self { told: false, dropped: 0, accounted: Dropped::NOTHING, quiet_until: None };
}

/// Frames that were refused and not told of yet.
#[derive(Default)]
pub(super) struct Refusals {
    reason: &'static str,
    frames: u64,
    quiet_until: Option<Instant>,
}

impl AtFirst for Refusals {
    const AT_FIRST: &'static Self = &Self { reason: "", frames: 0, quiet_until: None };
}

impl Refusals {
    /// When what waits to be told may be told.
    pub(super) fn due(&self) -> Option<Instant> {
        self.quiet_until.filter(|_| self.frames > 0)
    }
}

impl LagWatch {
    pub(super) fn quiet_until(&self) -> Option<Instant> {
        self.quiet_until
    }
}

impl Client {
    /// Whether the client's socket is read now. What is not read waits in the kernel, and then at the sender.
    pub(super) fn may_read(&self) -> bool {
        let full = self.inflow.stop.waiting_bytes >= self.terms.queue_bytes;
        let held = self.inflow.paused == Some(PausePolicy::Hold);
        let behind = self.kept.as_deref().is_some_and(Kept::is_full);
        !held && !full && !behind && (!self.pace.limited() || self.pace.wait().is_none())
    }

    /// Hears what the client says, and what has arrived with it. Flow 1 begins: its frames go to the room as one run.
    pub(super) fn hear(&mut self, first: Incoming, wire: &mut Halves) -> Option<Ending> {
        let mut batch = RunBuilder::default();
        let (mut next, mut full, mut ending) = (Some(first), false, None);
        // A pong tells the round trip before it counts as a sound.
        if !matches!(next, Some(Incoming::Pong(_))) {
            self.heart.heard();
        }
        while let Some(incoming) = next {
            if !self.heart.bears(&incoming) {
                ending = Some(Ending::gateway(CloseCode::RateLimited));
                break;
            }
            match incoming {
                Incoming::Frame(kind, payload) if self.may_send(kind, payload.len()) => {
                    self.inflow.sent += 1;
                    self.inflow.frames += 1;
                    self.inflow.bytes += payload.len() as u64;
                    if self.pace.limited() {
                        self.pace.spend(1, payload.len() as u64);
                    }
                    // A client's frames are longer by their mask: so what has been read fits, up to where a batch ends.
                    batch.expect(payload.len(), wire.reader.waiting().min(CHUNK));
                    batch.push(kind, &payload);
                    // They travel together as long as one more like this still fits in a write.
                    full = batch.is_full(payload.len(), CHUNK);
                }
                Incoming::Frame(kind, _) => {
                    // The frames of a run stand one behind the other among all that the client sent.
                    self.pass_on(&mut batch);
                    self.inflow.sent += 1;
                    ending = self.violated(kind);
                }
                Incoming::Ping(payload) => {
                    wire.writer.pong(&payload);
                    self.writing = true;
                }
                Incoming::Pong(payload) => self.ponged(&payload),
                Incoming::Close(closing) => ending = Some(Ending::Peer(closing)),
                Incoming::Broken(code) => ending = Some(self.broken(code)),
                Incoming::Gone => ending = Some(Ending::Gone),
            }
            if ending.is_some() || full || !self.may_read() {
                break;
            }
            next = wire.reader.ready();
        }
        self.pass_on(&mut batch);
        self.sent_much |= full;
        if let Some(held_back) = self.pace.news() {
            self.story.raise(EventKind::ClientLimited, held_back, None);
        }
        ending
    }

    fn may_send(&self, kind: FrameKind, bytes: usize) -> bool {
        self.facts.format.carries(kind) && bytes <= self.terms.largest && self.terms.may_publish
    }

    /// The client sent a frame that it may not send.
    fn violated(&mut self, kind: FrameKind) -> Option<Ending> {
        let (reason, code) = match kind {
            _ if !self.terms.may_publish => (NOT_GRANTED, CloseCode::Forbidden),
            kind if !self.facts.format.carries(kind) => (WRONG_KIND, CloseCode::WrongKind),
            _ => (TOO_BIG, CloseCode::TooBig),
        };
        self.refuse(reason);
        (self.terms.violations == Violations::Close).then(|| Ending::gateway(code))
    }

    /// The last frames that the client has sent go their way. Without marks that wait among them, at the cost of one
    /// comparison.
    fn pass_on(&mut self, batch: &mut RunBuilder) {
        if self.marks.next() <= self.inflow.sent {
            self.pass_on_with_marks(batch.finish());
        } else if !batch.is_empty() {
            self.publish_or_wait(batch.finish(), self.inflow.sent);
        }
    }

    /// A run goes its way that ends at the position `upto`.
    pub(super) fn publish_or_wait(&mut self, run: Run, upto: u64) {
        match self.inflow.paused {
            None => self.publish(&run),
            Some(PausePolicy::Drop) => {
                let stop = &mut *self.inflow.stop;
                stop.dropped.frames += run.frames();
                stop.dropped.bytes += run.payload_bytes();
                stop.dropped_in_pause += run.frames();
            }
            Some(PausePolicy::Buffer | PausePolicy::Hold) => self.inflow.hold(run, upto),
        }
    }

    /// Publishes to the room as this client.
    pub(super) fn publish(&mut self, run: &Run) {
        self.publish_and_reply(run, None);
    }

    /// The same; who waits for it is told when it has been: in a room that keeps its frames, when they are kept.
    pub(super) fn publish_and_reply(&mut self, run: &Run, reply: Option<ReplyTo>) {
        self.inflow.published += run.frames();
        let outcome = Reply::Done(json!({"seq": self.inflow.published}));
        let reply = reply.map(|reply| (reply, outcome));
        if let Some(kept) = self.kept.as_deref_mut() {
            return kept.sending.push(run, self.terms.ruling.spec.echo, reply);
        }
        if !self.node.publish(&self.room, &self.terms.ruling.spec, run, Some((self.pair, self.fence))) {
            self.refuse_all(BEHIND, run.frames());
        }
        if let Some((to, outcome)) = reply {
            self.node.reply(to, outcome);
        }
    }

    /// A frame was not taken. The siblings hear of the first at once and of those that follow once a second.
    pub(super) fn refuse(&mut self, reason: &'static str) {
        self.refuse_all(reason, 1);
    }

    pub(super) fn refuse_all(&mut self, reason: &'static str, frames: u64) {
        if frames == 0 {
            return;
        }
        if self.refusals.frames > 0 && self.refusals.reason != reason {
            self.tell_refusals();
        }
        self.refusals.reason = reason;
        self.refusals.frames += frames;
        if self.refusals.quiet_until.is_none_or(|at| at <= Instant::now()) {
            self.tell_refusals();
        }
    }

    /// Tells what is to be told of refused frames.
    pub(super) fn tell_refusals(&mut self) {
        let Refusals { reason, frames, .. } = *std::mem::take(&mut self.refusals);
        if frames > 0 {
            self.story.raise(EventKind::ClientRefused, json!({"reason": reason, "frames": frames}), None);
            self.refusals.quiet_until = Some(Instant::now() + QUIET);
        }
    }

    /// Looks at the outbox: tells the siblings when the client falls behind and when it has caught up, and ends the
    /// socket when the bound was hit and the room's policy is to close.
    pub(super) fn check_lag(&mut self) -> Option<Ending> {
        let level = self.outbox.level();
        let now = Instant::now();
        if let Some(lag) = self.lag.there() {
            lag.quiet_until = lag.quiet_until.filter(|at| *at > now);
        }
        // A lag that came and went while it was quiet is told when something was lost by it.
        let news = level.lagging || level.dropped != self.lag.accounted;
        if !self.lag.told && (level.overflowed || news && self.lag.quiet_until.is_none()) {
            self.lag.told = true;
            let data = json!({
                "queued_frames": level.queued_frames, "queued_bytes": level.queued_bytes,
                "queue_bytes": level.limit, "dropped": level.dropped.since(self.lag.accounted),
            });
            self.story.raise(EventKind::ClientLagging, data, None);
        }
        if level.overflowed {
            return Some(Ending::gateway(CloseCode::TooSlow));
        }
        if level.dropped.frames != self.lag.dropped {
            self.lag.dropped = level.dropped.frames;
            self.anchor(false);
        }
        if !level.lagging && self.lag.told {
            self.lag.told = false;
            let before = std::mem::replace(&mut self.lag.accounted, level.dropped);
            if before != level.dropped {
                self.anchor(true);
            }
            self.lag.quiet_until = Some(now + QUIET);
            let data = json!({"dropped": level.dropped.since(before), "queued_bytes": level.queued_bytes});
            self.story.raise(EventKind::ClientCaughtUp, data, None);
        }
        None
    }
}
