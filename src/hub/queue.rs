//! What waits for one client socket, and what becomes of it when there is too much. Plain data; [`super::Outbox`]
//! shares it.
//!
//! Marks wait in line with the frames. A mark's place is how many frames have been taken when its turn comes: whatever
//! happened to those before it (dropped, held back, moved away from), it can't be wrong.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{AtFirst, Dropped, Hearing, Level, Resumed, Seldom, Source};
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
    /// Frames behind those that are promised.
    line: VecDeque<Item>,
    pub(super) count: Count,
    pub(super) paused: Option<PausePolicy>,
    pub(super) hearing: Hearing,
    slow: Slow,
    /// Whether there is something to tell: a flag of the level is another, or something was lost.
    pub(super) news: bool,
    pub(super) seldom: Seldom<Special>,
}

/// What every queue counts; the rest of a [`Level`] is [`Special`].
#[derive(Default)]
pub(super) struct Count {
    taken_frames: u64,
    taken_bytes: u64,
    pub(super) queued_frames: u64,
    queued_bytes: usize,
    limit: usize,
    lagging: bool,
    overflowed: bool,
}

/// What marks, pauses, moves and a slow peer make of a queue.
#[derive(Default)]
pub(super) struct Special {
    /// Frames before a position that was told to somebody: they can't be dropped.
    promised: VecDeque<Item>,
    /// Marks whose turn has come and that are not told yet.
    reached: VecDeque<Reached>,
    reached_bytes: usize,
    /// What marks hold of the bytes that wait.
    mark_bytes: usize,
    dropped: Dropped,
    dropped_in_pauses: Dropped,
    /// The same when the present pause began.
    before_pause: Dropped,
}

impl AtFirst for Special {
    const AT_FIRST: &'static Self = &Self {
        promised: VecDeque::new(),
        reached: VecDeque::new(),
        reached_bytes: 0,
        mark_bytes: 0,
        dropped: Dropped::NOTHING,
        dropped_in_pauses: Dropped::NOTHING,
        before_pause: Dropped::NOTHING,
    };
}

impl Queue {
    pub(super) fn new(limit: usize, slow: Slow) -> Self {
        Self {
            line: VecDeque::new(),
            count: Count { limit, ..Count::default() },
            paused: None,
            hearing: Hearing::All,
            slow,
            news: false,
            seldom: Seldom::default(),
        }
    }

    /// How it stands.
    pub(super) fn level(&self) -> Level {
        let Count { taken_frames, taken_bytes, queued_frames, queued_bytes, limit, lagging, overflowed } = self.count;
        let Special { mark_bytes, dropped, dropped_in_pauses, .. } = *self.seldom;
        Level {
            taken_frames,
            taken_bytes,
            queued_frames,
            queued_bytes,
            mark_bytes,
            limit,
            dropped,
            dropped_in_pauses,
            lagging,
            overflowed,
        }
    }

    /// Whether no frame waits: then one comes in, however large it is.
    fn has_no_frames(&self) -> bool {
        self.count.queued_bytes == self.seldom.mark_bytes
    }

    /// Whether so many more bytes fit.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.has_no_frames() || self.count.queued_bytes + bytes <= self.count.limit
    }

    /// Whether what comes from there is for it.
    pub(super) fn hears(&self, source: Source) -> bool {
        self.hearing.hears(source)
    }

    pub(super) fn push(&mut self, run: &Run) {
        if self.paused == Some(PausePolicy::Drop) {
            return self.seldom.dropped_in_pauses.add(run);
        }
        // Nothing behind what was lost: whoever is closed for it has all that was before.
        if self.count.overflowed {
            return self.seldom.dropped.add(run);
        }
        let room = self.count.limit.saturating_sub(self.count.queued_bytes);
        // One run may be larger than the bound: an empty queue takes it, or it could never be delivered.
        let empty = self.has_no_frames();
        if run.len() <= room || empty && (self.slow == Slow::Close || run.frames() == 1) {
            return self.enqueue(run.clone());
        }
        self.news = true;
        let mut rest = run.clone();
        match self.slow {
            Slow::Close => {
                self.count.overflowed = true;
                self.seldom.dropped.add(run);
            }
            Slow::DropNewest => {
                let mut fitting = rest.split_fitting(room);
                if fitting.is_empty() && empty {
                    fitting = rest.split_first();
                }
                if !fitting.is_empty() {
                    self.enqueue(fitting);
                }
                self.seldom.dropped.add(&rest);
            }
            Slow::DropOldest => {
                self.drop_oldest(run.len() - room);
                let room = self.count.limit.saturating_sub(self.count.queued_bytes);
                // Of a run larger than the bound, the newest frames stay.
                while rest.len() > room && !(rest.frames() == 1 && self.has_no_frames()) {
                    let first = rest.split_first();
                    self.seldom.dropped.add(&first);
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
            return self.seldom.dropped_in_pauses.add(&run);
        }
        self.enqueue(run);
    }

    pub(super) fn enqueue(&mut self, run: Run) {
        self.count.queued_bytes += run.len();
        self.count.queued_frames += run.frames();
        if self.line.capacity() == 0 {
            self.line.reserve_exact(1);
        }
        self.line.push_back(Item::Run(run));
        self.settle();
    }

    /// Puts a mark in line. When nothing is before it, its turn has come.
    pub(super) fn push_mark(&mut self, mark: &Arc<Mark>, weight: usize) {
        let mut room = self.count.limit.saturating_sub(self.count.queued_bytes);
        if weight > room && self.slow == Slow::DropOldest {
            self.drop_oldest(weight - room);
            room = self.count.limit.saturating_sub(self.count.queued_bytes);
        }
        // As with frames, an empty queue takes one that is larger than the bound.
        if self.count.overflowed || weight > room && self.count.queued_bytes > 0 {
            self.news = true;
            self.seldom.dropped.marks += 1;
            self.count.overflowed |= self.slow == Slow::Close;
            return;
        }
        self.count.queued_bytes += weight;
        self.seldom.mark_bytes += weight;
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
            let line = self.first_line();
            if taken > 0 && matches!(line.front(), Some(Item::Run(run)) if taken + run.len() > bytes) {
                break;
            }
            match line.pop_front() {
                Some(Item::Run(run)) => {
                    taken += run.len();
                    self.count.queued_frames -= run.frames();
                    self.count.taken_frames += run.frames();
                    self.count.taken_bytes += run.payload_bytes();
                    into.push_back(run.wire().clone());
                }
                Some(Item::Mark(mark, weight)) => self.turn_of(mark, weight),
                None => break,
            }
        }
        self.reach();
        // Idle sockets keep room for one.
        if self.line.is_empty() && self.line.capacity() > 1 {
            self.line = VecDeque::new();
        }
        if let Some(special) = self.seldom.there()
            && special.promised.is_empty()
        {
            special.promised = VecDeque::new();
        }
    }

    /// Where the next thing stands, if there is one.
    fn first_line(&mut self) -> &mut VecDeque<Item> {
        if self.seldom.promised.is_empty() { &mut self.line } else { &mut self.seldom.promised }
    }

    /// Whether nothing goes out.
    fn holds(&self) -> bool {
        matches!(self.paused, Some(PausePolicy::Buffer | PausePolicy::Hold))
    }

    /// The turn has come of the marks that no frame is before any more.
    fn reach(&mut self) {
        while !self.holds() {
            let line = self.first_line();
            let Some(Item::Mark(..)) = line.front() else { break };
            if let Some(Item::Mark(mark, weight)) = line.pop_front() {
                self.turn_of(mark, weight);
            }
        }
    }

    fn turn_of(&mut self, mark: Arc<Mark>, weight: usize) {
        self.seldom.reached_bytes += weight;
        self.seldom.reached.push_back(Reached { at: self.count.taken_frames, mark, weight });
        self.news = true;
    }

    /// At most `most` marks whose turn has come, and whether there are more. They hold their bytes until then, and are
    /// not to hold too many: all of them when they do.
    pub(super) fn take_reached(&mut self, most: usize) -> (VecDeque<Reached>, bool) {
        if self.seldom.reached.is_empty() {
            return (VecDeque::new(), false);
        }
        let all = self.seldom.reached.len() <= most || self.seldom.reached_bytes > self.count.limit / SHARE_OF_MARKS;
        let rest = if all { VecDeque::new() } else { self.seldom.reached.split_off(most) };
        let taken = std::mem::replace(&mut self.seldom.reached, rest);
        let bytes = taken.iter().map(|reached| reached.weight).sum::<usize>();
        self.seldom.reached_bytes -= bytes;
        self.seldom.mark_bytes -= bytes;
        self.wrote(bytes);
        (taken, !all)
    }

    /// How many marks have not had their turn.
    pub(super) fn waiting_marks(&self) -> u64 {
        let marks = self.seldom.promised.iter().chain(&self.line).filter(|item| matches!(item, Item::Mark(..)));
        marks.count() as u64
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.count.queued_bytes -= bytes;
        self.settle();
    }

    /// It is another socket's from now on: what is queued stays, and is counted anew. Returns how many frames that is,
    /// and how many were dropped.
    pub(super) fn begin_anew(&mut self) -> (u64, u64) {
        let Count { queued_frames, queued_bytes, limit, .. } = self.count;
        let (dropped, dropped_in_pauses) = (self.seldom.dropped, self.seldom.dropped_in_pauses);
        self.count = Count { queued_frames, queued_bytes, limit, ..Count::default() };
        if let Some(special) = self.seldom.there() {
            (special.dropped, special.dropped_in_pauses) = (Dropped::NOTHING, Dropped::NOTHING);
        }
        self.settle();
        (queued_frames, dropped.frames + dropped_in_pauses.frames)
    }

    /// Takes out everything, of one from which nothing was taken yet.
    pub(super) fn drain(&mut self) -> VecDeque<Item> {
        let special = &mut *self.seldom;
        let reached = special.reached.drain(..).map(|Reached { mark, weight, .. }| Item::Mark(mark, weight));
        let items = reached.chain(special.promised.drain(..)).chain(self.line.drain(..)).collect();
        (special.reached_bytes, special.mark_bytes) = (0, 0);
        self.count = Count { limit: self.count.limit, ..Count::default() };
        items
    }

    /// Puts this before everything, in one from which nothing was taken yet. The bound does not hold for it.
    pub(super) fn put_before(&mut self, items: impl IntoIterator<Item = Item>) {
        let behind = self.drain();
        for item in items.into_iter().chain(behind) {
            match &item {
                Item::Run(run) => self.count.queued_frames += run.frames(),
                Item::Mark(_, weight) => self.seldom.mark_bytes += weight,
            }
            self.count.queued_bytes += item.bytes();
            self.line.push_back(item);
        }
        self.reach();
        self.settle();
    }

    /// What is queued now can't be dropped any more; returns the position behind it.
    pub(super) fn promise(&mut self) -> u64 {
        if !self.line.is_empty() {
            self.seldom.promised.append(&mut self.line);
        }
        self.count.taken_frames + self.count.queued_frames
    }

    pub(super) fn pause(&mut self, policy: PausePolicy) -> u64 {
        if self.paused.is_none() {
            self.seldom.before_pause = self.seldom.dropped_in_pauses;
        }
        self.paused = Some(policy);
        self.reach();
        if policy == PausePolicy::Drop { self.promise() } else { self.count.taken_frames }
    }

    pub(super) fn resume(&mut self) -> Resumed {
        let dropped = self.seldom.dropped_in_pauses.since(self.seldom.before_pause).frames;
        let (waited, dropped) = match self.paused.take() {
            Some(PausePolicy::Buffer | PausePolicy::Hold) => (self.count.queued_frames, dropped),
            Some(PausePolicy::Drop) => (0, dropped),
            None => (0, 0),
        };
        self.reach();
        Resumed { position: self.count.taken_frames + self.count.queued_frames - waited, waited, dropped }
    }

    pub(super) fn set(&mut self, limit: usize, slow: Slow) {
        (self.count.limit, self.slow) = (limit, slow);
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
                        self.count.queued_frames -= 1;
                        self.seldom.dropped.add(&first);
                    }
                    if !run.is_empty() {
                        self.line.push_front(Item::Run(run));
                    }
                }
                Item::Mark(_, weight) if self.seldom.mark_bytes > self.count.limit / SHARE_OF_MARKS => {
                    freed += weight;
                    self.seldom.mark_bytes -= weight;
                    self.seldom.dropped.marks += 1;
                }
                // Behind what was promised no frame is before it any more that could be dropped.
                mark @ Item::Mark(..) => self.seldom.promised.push_back(mark),
            }
        }
        self.count.queued_bytes -= freed;
        self.news |= freed > 0;
        self.reach();
    }

    fn settle(&mut self) {
        let Count { queued_bytes, limit, lagging, .. } = self.count;
        self.count.lagging = queued_bytes > limit / 2 || lagging && queued_bytes > limit / 8;
        self.news |= lagging != self.count.lagging;
    }
}
