//! What waits for one client socket, and what becomes of it when there is too much. Plain data; [`super::Outbox`]
//! shares it.
//!
//! Marks wait in line with the frames. A mark's place is how many frames have been taken when its turn comes: whatever
//! happened to those before it (dropped, held back, moved away from), it can't be wrong.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{Dropped, Hearing, Level, Resumed, Source};
use crate::protocol::{Mark, PausePolicy, Run, Slow};

/// Marks between frames that are dropped are kept while all marks hold at most this part of the bound; beyond, the
/// oldest go like the frames around them, so that marks can't keep frames out.
const SHARE_OF_MARKS: usize = 4;

/// What waits in line.
pub enum Item {
    /// Frames.
    Run(Run),
    /// A mark, and how many bytes it holds.
    Mark(Arc<Mark>, usize),
}

impl Item {
    /// How many frames it is.
    #[must_use]
    pub fn frames(&self) -> u64 {
        match self {
            Self::Run(run) => run.frames(),
            Self::Mark(..) => 0,
        }
    }

    /// How many bytes it holds in a queue.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Run(run) => run.len(),
            Self::Mark(_, weight) => *weight,
        }
    }
}

/// A mark whose turn has come.
#[derive(Debug, Clone, PartialEq)]
pub struct Reached {
    /// How many frames of the socket come before it.
    pub at: u64,
    /// What it tells.
    pub mark: Arc<Mark>,
    /// How many bytes it held.
    weight: usize,
}

/// The frames towards one client socket.
pub(super) struct Queue {
    /// Frames before a position that was told to somebody: they can't be dropped.
    promised: VecDeque<Item>,
    /// Frames behind them.
    line: VecDeque<Item>,
    /// Marks whose turn has come and that are not told yet.
    reached: VecDeque<Reached>,
    reached_bytes: usize,
    pub(super) level: Level,
    pub(super) paused: Option<PausePolicy>,
    pub(super) hearing: Hearing,
    slow: Slow,
    /// [`Level::dropped_in_pauses`] when the present pause began.
    before_pause: Dropped,
    /// Whether there is something to tell: a flag of the level is another, or something was lost.
    pub(super) news: bool,
}

impl Queue {
    pub(super) fn new(limit: usize, slow: Slow) -> Self {
        Self {
            promised: VecDeque::new(),
            line: VecDeque::new(),
            reached: VecDeque::new(),
            reached_bytes: 0,
            level: Level { limit, ..Level::default() },
            paused: None,
            hearing: Hearing::All,
            slow,
            before_pause: Dropped::default(),
            news: false,
        }
    }

    /// Whether what comes from there is for it.
    pub(super) fn hears(&self, source: Source) -> bool {
        self.hearing.hears(source)
    }

    pub(super) fn push(&mut self, run: &Run) {
        if self.paused == Some(PausePolicy::Drop) {
            return self.level.dropped_in_pauses.add(run);
        }
        // Nothing behind what was lost: whoever is closed for it has all that was before.
        if self.level.overflowed {
            return self.level.dropped.add(run);
        }
        let room = self.level.limit.saturating_sub(self.level.queued_bytes);
        // One run may be larger than the bound: an empty queue takes it, or it could never be delivered.
        let empty = self.level.has_no_frames();
        if run.len() <= room || empty && (self.slow == Slow::Close || run.frames() == 1) {
            return self.enqueue(run.clone());
        }
        self.news = true;
        let mut rest = run.clone();
        match self.slow {
            Slow::Close => {
                self.level.overflowed = true;
                self.level.dropped.add(run);
            }
            Slow::DropNewest => {
                let mut fitting = rest.split_fitting(room);
                if fitting.is_empty() && empty {
                    fitting = rest.split_first();
                }
                if !fitting.is_empty() {
                    self.enqueue(fitting);
                }
                self.level.dropped.add(&rest);
            }
            Slow::DropOldest => {
                self.drop_oldest(run.len() - room);
                let room = self.level.limit.saturating_sub(self.level.queued_bytes);
                // Of a run larger than the bound, the newest frames stay.
                while rest.len() > room && !(rest.frames() == 1 && self.level.has_no_frames()) {
                    let first = rest.split_first();
                    self.level.dropped.add(&first);
                }
                if !rest.is_empty() {
                    self.enqueue(rest);
                }
            }
        }
    }

    /// Queues what the room has kept. Whoever reads it looks that it fits.
    pub(super) fn push_kept(&mut self, run: Run) {
        if self.paused == Some(PausePolicy::Drop) {
            return self.level.dropped_in_pauses.add(&run);
        }
        self.enqueue(run);
    }

    pub(super) fn enqueue(&mut self, run: Run) {
        self.level.queued_bytes += run.len();
        self.level.queued_frames += run.frames();
        if self.line.capacity() == 0 {
            self.line.reserve_exact(1);
        }
        self.line.push_back(Item::Run(run));
        self.settle();
    }

    /// Puts a mark in line. When nothing is before it, its turn has come.
    pub(super) fn push_mark(&mut self, mark: &Arc<Mark>, weight: usize) {
        let mut room = self.level.limit.saturating_sub(self.level.queued_bytes);
        if weight > room && self.slow == Slow::DropOldest {
            self.drop_oldest(weight - room);
            room = self.level.limit.saturating_sub(self.level.queued_bytes);
        }
        // As with frames, an empty queue takes one that is larger than the bound.
        if self.level.overflowed || weight > room && self.level.queued_bytes > 0 {
            self.news = true;
            self.level.dropped.marks += 1;
            self.level.overflowed |= self.slow == Slow::Close;
            return;
        }
        self.level.queued_bytes += weight;
        self.level.mark_bytes += weight;
        self.line.push_back(Item::Mark(Arc::clone(mark), weight));
        self.reach();
        self.settle();
    }

    /// Takes at most `bytes` bytes of whole runs, or one that is longer; they count as queued until [`Queue::wrote`].
    pub(super) fn take(&mut self, bytes: usize, into: &mut VecDeque<Bytes>) {
        if self.holds() {
            return;
        }
        let mut taken = 0;
        loop {
            let line = if self.promised.is_empty() { &mut self.line } else { &mut self.promised };
            if let Some(Item::Run(run)) = line.front()
                && taken > 0
                && taken + run.len() > bytes
            {
                break;
            }
            match line.pop_front() {
                Some(Item::Run(run)) => {
                    taken += run.len();
                    self.level.queued_frames -= run.frames();
                    self.level.taken_frames += run.frames();
                    self.level.taken_bytes += run.payload_bytes();
                    into.push_back(run.wire().clone());
                }
                Some(Item::Mark(mark, weight)) => self.turn_of(mark, weight),
                None => break,
            }
        }
        self.reach();
        // Idle sockets keep room for one.
        if self.promised.is_empty() && self.line.is_empty() && self.promised.capacity() + self.line.capacity() > 1 {
            (self.promised, self.line) = (VecDeque::new(), VecDeque::new());
        }
    }

    /// Whether nothing goes out.
    fn holds(&self) -> bool {
        matches!(self.paused, Some(PausePolicy::Buffer | PausePolicy::Hold))
    }

    /// The turn has come of the marks that no frame is before any more.
    fn reach(&mut self) {
        while !self.holds() {
            let line = if self.promised.is_empty() { &mut self.line } else { &mut self.promised };
            let Some(Item::Mark(..)) = line.front() else { break };
            if let Some(Item::Mark(mark, weight)) = line.pop_front() {
                self.turn_of(mark, weight);
            }
        }
    }

    fn turn_of(&mut self, mark: Arc<Mark>, weight: usize) {
        self.reached_bytes += weight;
        self.reached.push_back(Reached { at: self.level.taken_frames, mark, weight });
        self.news = true;
    }

    /// At most `most` marks whose turn has come, and whether there are more. They hold their bytes until then, and are
    /// not to hold too many: all of them when they do.
    pub(super) fn take_reached(&mut self, most: usize) -> (VecDeque<Reached>, bool) {
        let all = self.reached.len() <= most || self.reached_bytes > self.level.limit / SHARE_OF_MARKS;
        let rest = if all { VecDeque::new() } else { self.reached.split_off(most) };
        let taken = std::mem::replace(&mut self.reached, rest);
        let bytes = taken.iter().map(|reached| reached.weight).sum::<usize>();
        self.reached_bytes -= bytes;
        self.level.mark_bytes -= bytes;
        self.wrote(bytes);
        (taken, !all)
    }

    /// How many marks have not had their turn.
    pub(super) fn waiting_marks(&self) -> u64 {
        let marks = self.promised.iter().chain(&self.line).filter(|item| matches!(item, Item::Mark(..)));
        marks.count() as u64
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.level.queued_bytes -= bytes;
        self.settle();
    }

    /// It is another socket's from now on: what is queued stays, and is counted anew. Returns how many frames that is,
    /// and how many were dropped.
    pub(super) fn begin_anew(&mut self) -> (u64, u64) {
        let Level { queued_frames, queued_bytes, mark_bytes, limit, dropped, dropped_in_pauses, .. } = self.level;
        self.level = Level { queued_frames, queued_bytes, mark_bytes, limit, ..Level::default() };
        self.settle();
        (queued_frames, dropped.frames + dropped_in_pauses.frames)
    }

    /// Takes out everything, of one from which nothing was taken yet.
    pub(super) fn drain(&mut self) -> VecDeque<Item> {
        let reached = self.reached.drain(..).map(|Reached { mark, weight, .. }| Item::Mark(mark, weight));
        let items = reached.chain(self.promised.drain(..)).chain(self.line.drain(..)).collect();
        self.reached_bytes = 0;
        let Level { limit, dropped, dropped_in_pauses, .. } = self.level;
        self.level = Level { limit, dropped, dropped_in_pauses, ..Level::default() };
        items
    }

    /// Puts this before everything, in one from which nothing was taken yet. The bound does not hold for it.
    pub(super) fn put_before(&mut self, items: impl IntoIterator<Item = Item>) {
        let behind = self.drain();
        for item in items.into_iter().chain(behind) {
            match &item {
                Item::Run(run) => self.level.queued_frames += run.frames(),
                Item::Mark(_, weight) => self.level.mark_bytes += weight,
            }
            self.level.queued_bytes += item.bytes();
            self.line.push_back(item);
        }
        self.reach();
        self.settle();
    }

    /// What is queued now can't be dropped any more; returns the position behind it.
    pub(super) fn promise(&mut self) -> u64 {
        self.promised.append(&mut self.line);
        self.level.taken_frames + self.level.queued_frames
    }

    pub(super) fn pause(&mut self, policy: PausePolicy) -> u64 {
        if self.paused.is_none() {
            self.before_pause = self.level.dropped_in_pauses;
        }
        self.paused = Some(policy);
        self.reach();
        if policy == PausePolicy::Drop { self.promise() } else { self.level.taken_frames }
    }

    pub(super) fn resume(&mut self) -> Resumed {
        let dropped = self.level.dropped_in_pauses.since(self.before_pause).frames;
        let (waited, dropped) = match self.paused.take() {
            Some(PausePolicy::Buffer | PausePolicy::Hold) => (self.level.queued_frames, dropped),
            Some(PausePolicy::Drop) => (0, dropped),
            None => (0, 0),
        };
        self.reach();
        Resumed { position: self.level.taken_frames + self.level.queued_frames - waited, waited, dropped }
    }

    pub(super) fn set(&mut self, limit: usize, slow: Slow) {
        (self.level.limit, self.slow) = (limit, slow);
        self.settle();
    }

    /// Drops the oldest frames that nobody was promised, until `bytes` bytes are free or none is left. Marks among them
    /// stay, one behind the other, as long as marks do not hold too much.
    fn drop_oldest(&mut self, bytes: usize) {
        let mut freed = 0;
        while freed < bytes
            && let Some(item) = self.line.pop_front()
        {
            match item {
                Item::Run(mut run) => {
                    while freed < bytes && !run.is_empty() {
                        let first = run.split_first();
                        freed += first.len();
                        self.level.queued_frames -= 1;
                        self.level.dropped.add(&first);
                    }
                    if !run.is_empty() {
                        self.line.push_front(Item::Run(run));
                    }
                }
                Item::Mark(_, weight) if self.level.mark_bytes > self.level.limit / SHARE_OF_MARKS => {
                    freed += weight;
                    self.level.mark_bytes -= weight;
                    self.level.dropped.marks += 1;
                }
                // Behind what was promised no frame is before it any more that could be dropped.
                mark @ Item::Mark(..) => self.promised.push_back(mark),
            }
        }
        self.level.queued_bytes -= freed;
        self.news |= freed > 0;
        self.reach();
    }

    fn settle(&mut self) {
        let Level { queued_bytes, limit, lagging, .. } = self.level;
        self.level.lagging = queued_bytes > limit / 2 || lagging && queued_bytes > limit / 8;
        self.news |= lagging != self.level.lagging;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_cost_frames_nothing() {
        assert_eq!(
            size_of::<Item>(),
            size_of::<Run>(),
            "a line of frames is not longer because marks may stand in it"
        );
    }
}
