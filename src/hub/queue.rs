//! What waits for one client socket, and what becomes of it when there is too much. Plain data; [`super::Outbox`]
//! shares it.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::protocol::{PausePolicy, Run, Slow};

/// How many runs an empty queue keeps room for.
const IDLE_CAPACITY: usize = 16;

/// Frames that were not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Dropped {
    /// How many.
    pub frames: u64,
    /// Their payload, in bytes.
    pub bytes: u64,
}

impl Dropped {
    fn add(&mut self, run: &Run) {
        self.frames += run.frames();
        self.bytes += run.payload_bytes();
    }

    /// What came on top since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self { frames: self.frames - before.frames, bytes: self.bytes - before.bytes }
    }
}

/// How an outbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Level {
    /// Frames taken for writing since the socket opened: its position.
    pub taken_frames: u64,
    /// Their payload, in bytes.
    pub taken_bytes: u64,
    /// Frames that wait.
    pub queued_frames: u64,
    /// Encoded bytes that wait, those being written included.
    pub queued_bytes: usize,
    /// The bound.
    pub limit: usize,
    /// Frames that were dropped since the socket opened because the client was too slow.
    pub dropped: Dropped,
    /// Frames that were dropped since the socket opened because delivery was paused so.
    pub dropped_in_pauses: Dropped,
    /// Whether the queue passed half of its bound and has not come down to an eighth since.
    pub lagging: bool,
    /// Whether the bound was hit under [`Slow::Close`]: the socket must be closed.
    pub overflowed: bool,
}

/// What the end of a pause found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    /// How many frames stand before the first that had to wait.
    pub position: u64,
    /// How many waited.
    pub waited: u64,
    /// How many were dropped in the pause.
    pub dropped: u64,
}

/// The frames towards one client socket.
pub(super) struct Queue {
    /// Frames before a position that was told to somebody: they can't be dropped.
    promised: VecDeque<Run>,
    /// Frames behind them.
    runs: VecDeque<Run>,
    pub(super) level: Level,
    pub(super) paused: Option<PausePolicy>,
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
            runs: VecDeque::new(),
            level: Level { limit, ..Level::default() },
            paused: None,
            slow,
            before_pause: Dropped::default(),
            news: false,
        }
    }

    pub(super) fn push(&mut self, run: &Run) {
        if self.paused == Some(PausePolicy::Drop) {
            return self.level.dropped_in_pauses.add(run);
        }
        let room = self.level.limit.saturating_sub(self.level.queued_bytes);
        // One run may be larger than the bound: an empty queue takes it, or it could never be delivered.
        let empty = self.level.queued_bytes == 0;
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
                while rest.len() > room && !(rest.frames() == 1 && self.level.queued_bytes == 0) {
                    let first = rest.split_first();
                    self.level.dropped.add(&first);
                }
                if !rest.is_empty() {
                    self.enqueue(rest);
                }
            }
        }
    }

    pub(super) fn enqueue(&mut self, run: Run) {
        self.level.queued_bytes += run.len();
        self.level.queued_frames += run.frames();
        self.runs.push_back(run);
        self.settle();
    }

    /// Takes about `bytes` bytes of whole runs; they count as queued until [`Queue::wrote`].
    pub(super) fn take(&mut self, bytes: usize, into: &mut VecDeque<Bytes>) {
        if matches!(self.paused, Some(PausePolicy::Buffer | PausePolicy::Hold)) {
            return;
        }
        let mut taken = 0;
        while taken < bytes {
            let Some(run) = self.promised.pop_front().or_else(|| self.runs.pop_front()) else { break };
            taken += run.len();
            self.level.queued_frames -= run.frames();
            self.level.taken_frames += run.frames();
            self.level.taken_bytes += run.payload_bytes();
            into.push_back(run.wire().clone());
        }
        // A burst is no reason to keep its memory.
        if self.level.queued_frames == 0 && self.runs.capacity() + self.promised.capacity() > IDLE_CAPACITY {
            (self.promised, self.runs) = (VecDeque::new(), VecDeque::new());
        }
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.level.queued_bytes -= bytes;
        self.settle();
    }

    /// What is queued now can't be dropped any more; returns the position behind it.
    pub(super) fn promise(&mut self) -> u64 {
        self.promised.append(&mut self.runs);
        self.level.taken_frames + self.level.queued_frames
    }

    pub(super) fn pause(&mut self, policy: PausePolicy) -> u64 {
        if self.paused.is_none() {
            self.before_pause = self.level.dropped_in_pauses;
        }
        self.paused = Some(policy);
        if policy == PausePolicy::Drop { self.promise() } else { self.level.taken_frames }
    }

    pub(super) fn resume(&mut self) -> Resumed {
        let dropped = self.level.dropped_in_pauses.since(self.before_pause).frames;
        let (waited, dropped) = match self.paused.take() {
            Some(PausePolicy::Buffer | PausePolicy::Hold) => (self.level.queued_frames, dropped),
            Some(PausePolicy::Drop) => (0, dropped),
            None => (0, 0),
        };
        Resumed { position: self.level.taken_frames + self.level.queued_frames - waited, waited, dropped }
    }

    pub(super) fn set(&mut self, limit: usize, slow: Slow) {
        (self.level.limit, self.slow) = (limit, slow);
        self.settle();
    }

    /// Drops the oldest frames that nobody was promised, until `bytes` bytes are free or none is left.
    fn drop_oldest(&mut self, bytes: usize) {
        let mut freed = 0;
        while freed < bytes
            && let Some(mut run) = self.runs.pop_front()
        {
            while freed < bytes && !run.is_empty() {
                let first = run.split_first();
                freed += first.len();
                self.level.queued_frames -= 1;
                self.level.dropped.add(&first);
            }
            if !run.is_empty() {
                self.runs.push_front(run);
            }
        }
        self.level.queued_bytes -= freed;
    }

    fn settle(&mut self) {
        let Level { queued_bytes, limit, lagging, .. } = self.level;
        self.level.lagging = queued_bytes > limit / 2 || lagging && queued_bytes > limit / 8;
        self.news |= lagging != self.level.lagging;
    }
}
