//! Marks in the actor of a client socket: those that its siblings set among the frames that it sends, and those that
//! have come among the frames that it receives.

use std::sync::Arc;

use serde_json::json;
use tokio::time::Instant;

use super::{client::Client, inflow::Held};
use crate::{
    hub::Reached,
    node::{ReplyTo, may_not_publish},
    protocol::{Cause, Envelope, EventKind, Failure, Fault, MARK_WAIT, Mark, MarkParams, Reply, Run},
};

/// How many marks of one client socket may wait for their frames.
const MOST_WAITING: usize = 64;

const LATE: &str = "its frame did not come in time";
const ENDED: &str = "the client socket ended before its frame came";
const HELD_BACK: &str = "the client socket ended while its frames were held back";
const BEHIND: &str = "the broker did not take it, and the room has one order for all";

/// Marks that wait for the frames that they are to follow, by their places.
#[derive(Default)]
pub(super) struct Marks {
    waiting: Vec<Awaited>,
    /// Marks may have been reached that are not told yet.
    pub(super) reached: bool,
}

/// Who waits, and for what.
type Waiting = (ReplyTo, Reply);

struct Awaited {
    after: u64,
    until: Instant,
    mark: Arc<Mark>,
    cause: Cause,
    reply: ReplyTo,
}

impl Marks {
    /// How many frames come before the next; beyond all when none waits.
    pub(super) fn next(&self) -> u64 {
        self.waiting.first().map_or(u64::MAX, |awaited| awaited.after)
    }

    /// When one has waited for too long.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|awaited| awaited.until).min()
    }

    /// Behind those that are to follow the same frame.
    fn add(&mut self, awaited: Awaited) {
        let at = self.waiting.partition_point(|other| other.after <= awaited.after);
        self.waiting.insert(at, awaited);
    }

    /// The next whose frame has come.
    fn take_next(&mut self, sent: u64) -> Option<Awaited> {
        (self.next() <= sent && !self.waiting.is_empty()).then(|| self.waiting.remove(0))
    }
}

impl Client {
    /// A sibling sets a mark.
    pub(super) fn mark(&mut self, params: MarkParams, cause: Cause, reply: ReplyTo) {
        let sent = self.inflow.sent;
        let after = params.after.unwrap_or(sent);
        let mark = Arc::new(Mark { from: self.pair, data: params.data, cause: Some(cause.clone()) });
        let failure = if !self.terms.may_publish {
            may_not_publish()
        } else if after < self.inflow.position() {
            let gone = self.inflow.position();
            let message = format!("after: {gone} frames have gone already: name a later one, or none for the last");
            Failure::new(Fault::Conflict, message)
        } else if after <= sent {
            return self.place(&mark, after, reply);
        } else if self.marks.waiting.len() < MOST_WAITING {
            return self.marks.add(Awaited { after, until: Instant::now() + MARK_WAIT, mark, cause, reply });
        } else {
            let message = format!("{MOST_WAITING} marks wait for their frames already: wait for replies");
            Failure::new(Fault::RateLimited, message)
        };
        self.node.reply(reply, Reply::Failed(failure));
    }

    /// Puts a mark behind `place` frames: none of those that follow has gone.
    fn place(&mut self, mark: &Arc<Mark>, place: u64, reply: ReplyTo) {
        let placed = Reply::Done(json!({"position": place}));
        let outcome = if !self.terms.may_publish {
            Reply::Failed(may_not_publish())
        } else if !self.inflow.holds() {
            if let Err(Some((reply, _))) = self.publish_mark(mark, Some((reply, placed))) {
                let failure = Failure::new(Fault::BrokerUnavailable, "the broker is behind: try again");
                self.node.reply(reply, Reply::Failed(failure));
            }
            return;
        } else if self.inflow.stop.waiting_bytes + mark.weight() <= self.terms.queue_bytes {
            self.inflow.hold_mark(Arc::clone(mark), place);
            placed
        } else {
            let message = "too much waits for the end of the pause: client.resume";
            Reply::Failed(Failure::new(Fault::RateLimited, message))
        };
        self.node.reply(reply, outcome);
    }

    /// Publishes a mark the way that the client's frames go; who waits for it is told when it has been. It is given back
    /// when the broker does not take it.
    fn publish_mark(&mut self, mark: &Arc<Mark>, reply: Option<Waiting>) -> Result<(), Option<Waiting>> {
        if let Some(kept) = self.kept.as_deref_mut() {
            let Ok(bytes) = Envelope::mark(None, mark) else { return Err(reply) };
            kept.sending.push_between(bytes, reply);
            return Ok(());
        }
        if !self.node.publish_mark(&self.room, &self.terms.ruling.spec, mark, (self.pair, self.fence)) {
            return Err(reply);
        }
        if let Some((to, outcome)) = reply {
            self.node.reply(to, outcome);
        }
        Ok(())
    }

    /// A run goes its way, the last frames that the client has sent, and the marks that belong among them.
    pub(super) fn pass_on_with_marks(&mut self, mut run: Run) {
        let sent = self.inflow.sent;
        while let Some(Awaited { after, mark, reply, .. }) = self.marks.take_next(sent) {
            let front = run.split_frames(after.saturating_sub(sent - run.frames()));
            if !front.is_empty() {
                self.publish_or_wait(front, after);
            }
            self.place(&mark, after, reply);
        }
        if !run.is_empty() {
            self.publish_or_wait(run, sent);
        }
    }

    /// What was held back goes its way.
    pub(super) fn let_go(&mut self, held: impl IntoIterator<Item = Held>) {
        for held in held {
            match held {
                Held::Run(run, _) => self.publish(&run),
                Held::Mark(mark, place) => {
                    if self.publish_mark(&mark, None).is_err() {
                        self.miss(&mark, place, BEHIND);
                    }
                }
            }
        }
    }

    /// A mark whose command has its reply comes to nothing all the same.
    fn miss(&mut self, mark: &Mark, after: u64, reason: &str) {
        let data = json!({"data": mark.data, "after": after, "frames": self.inflow.sent, "reason": reason});
        self.story.raise(EventKind::MarkMissed, data, mark.cause.clone());
    }

    /// Gives up the marks that have waited for too long.
    pub(super) fn give_late_marks_up(&mut self, now: Instant) {
        let late: Vec<_> = self.marks.waiting.extract_if(.., |awaited| awaited.until <= now).collect();
        self.give_up(late, LATE);
    }

    fn give_up(&mut self, marks: Vec<Awaited>, reason: &str) {
        let frames = self.inflow.sent;
        for Awaited { after, mark, cause, reply, .. } in marks {
            let data = json!({"data": mark.data, "after": after, "frames": frames, "reason": reason});
            let failure = Failure::new(
                Fault::Conflict,
                format!("after: {frames} frames came, the mark was to follow {after}: {reason}"),
            );
            self.story.raise_and_reply(EventKind::MarkMissed, data, cause, reply, Reply::Failed(failure));
        }
    }

    /// The socket ends, and all marks with it. Returns how many were lost on their way to the client, if any were.
    pub(super) fn end_marks(&mut self) -> Option<u64> {
        self.tell_all_marks(usize::MAX);
        for held in self.inflow.release() {
            if let Held::Mark(mark, place) = held {
                self.miss(&mark, place, HELD_BACK);
            }
        }
        let waiting = std::mem::take(&mut self.marks.waiting);
        self.give_up(waiting, ENDED);
        Some(self.outbox.waiting_marks()).filter(|lost| *lost > 0)
    }

    /// Tells the siblings of marks that have been reached, as many as their story has room for; the others wait in the
    /// outbox, which is bounded.
    pub(super) fn tell_marks(&mut self) {
        let room = self.story.room();
        if room > 0 {
            self.marks.reached = self.tell_all_marks(room);
        }
    }

    fn tell_all_marks(&mut self, most: usize) -> bool {
        let (marks, more) = self.outbox.take_marks(most);
        for Reached { at, mark, .. } in marks {
            if self.facts.watching.marks {
                let data = json!({"from": mark.from, "data": mark.data, "at": at, "epoch": self.fence.epoch});
                let cause = mark.cause.clone().filter(|_| mark.from == self.pair);
                self.story.raise(EventKind::Mark, data, cause);
            }
        }
        more
    }
}
