//! Outboxes: what waits to be written to one client socket.
//!
//! Bounded in bytes. Everyone in the room may push; only the socket's actor takes. A push is one short lock, one
//! reference count and, only when the actor may be asleep, one wake-up.

use std::{collections::VecDeque, future::Future};

use parking_lot::Mutex;
use tokio::sync::Notify;

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

struct Queue {
    /// Frames before a position that was told to somebody: they can't be dropped.
    promised: VecDeque<Run>,
    /// Frames behind them.
    runs: VecDeque<Run>,
    level: Level,
    slow: Slow,
    paused: Option<PausePolicy>,
    /// Bytes that the actor took and has not written yet.
    writing: usize,
    /// [`Level::dropped_in_pauses`] when the present pause began.
    before_pause: Dropped,
}

/// The queue towards one client socket.
pub struct Outbox {
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Outbox {
    /// An empty queue with a bound in bytes.
    #[must_use]
    pub fn new(limit: usize, slow: Slow) -> Self {
        let queue = Queue {
            promised: VecDeque::new(),
            runs: VecDeque::new(),
            level: Level { limit, ..Level::default() },
            slow,
            paused: None,
            writing: 0,
            before_pause: Dropped::default(),
        };
        Self { queue: Mutex::new(queue), changed: Notify::new() }
    }

    /// Queues a run as far as the bound and the pause allow.
    pub fn push(&self, run: &Run) {
        let mut queue = self.queue.lock();
        let before = queue.level;
        queue.push(run);
        // While frames wait unpaused the actor is busy writing and will come back for these by itself.
        let wake = before.queued_frames == 0
            || before.lagging != queue.level.lagging
            || before.overflowed != queue.level.overflowed;
        drop(queue);
        if wake {
            self.changed.notify_one();
        }
    }

    /// Moves about `bytes` bytes of whole runs to the actor, which must report them to [`Outbox::wrote`].
    pub fn take(&self, bytes: usize, into: &mut VecDeque<bytes::Bytes>) {
        let mut queue = self.queue.lock();
        if matches!(queue.paused, Some(PausePolicy::Buffer | PausePolicy::Hold)) {
            return;
        }
        let mut taken = 0;
        while taken < bytes {
            let Some(run) = queue.promised.pop_front().or_else(|| queue.runs.pop_front()) else { break };
            taken += run.len();
            queue.level.queued_frames -= run.frames();
            queue.level.taken_frames += run.frames();
            queue.level.taken_bytes += run.payload_bytes();
            into.push_back(run.wire().clone());
        }
        queue.writing += taken;
        // A burst is no reason to keep its memory.
        if queue.level.queued_frames == 0 && queue.runs.capacity() + queue.promised.capacity() > IDLE_CAPACITY {
            (queue.promised, queue.runs) = (VecDeque::new(), VecDeque::new());
        }
    }

    /// Reports bytes as written: the queue shrinks.
    pub fn wrote(&self, bytes: usize) {
        let mut queue = self.queue.lock();
        queue.writing -= bytes;
        queue.level.queued_bytes -= bytes;
        queue.settle();
    }

    /// Completes when something was pushed into an empty queue, or the level's flags changed.
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.changed.notified()
    }

    /// How it stands.
    pub fn level(&self) -> Level {
        self.queue.lock().level
    }

    /// The number of frames that stand before whatever is pushed next. They will be delivered, come what may, as
    /// long as the socket lives.
    pub fn position(&self) -> u64 {
        self.queue.lock().promise()
    }

    /// Queues one run even when paused or full, in its turn, and tells the position behind it.
    pub fn push_through(&self, run: &Run) -> u64 {
        let mut queue = self.queue.lock();
        queue.enqueue(run.clone());
        let position = queue.promise();
        drop(queue);
        self.changed.notify_one();
        position
    }

    /// How many more bytes fit.
    pub fn free(&self) -> usize {
        let queue = self.queue.lock();
        queue.level.limit.saturating_sub(queue.level.queued_bytes)
    }

    /// Stops delivery; returns the exact number of frames that will have been delivered before. What was queued
    /// already waits too, unless the policy drops what comes: then it is still delivered.
    pub fn pause(&self, policy: PausePolicy) -> u64 {
        let mut queue = self.queue.lock();
        if queue.paused.is_none() {
            queue.before_pause = queue.level.dropped_in_pauses;
        }
        queue.paused = Some(policy);
        if policy == PausePolicy::Drop { queue.promise() } else { queue.level.taken_frames }
    }

    /// How delivery is stopped, if it is.
    pub fn paused(&self) -> Option<PausePolicy> {
        self.queue.lock().paused
    }

    /// Lets delivery go on.
    pub fn resume(&self) -> Resumed {
        let mut queue = self.queue.lock();
        let dropped = queue.level.dropped_in_pauses.since(queue.before_pause).frames;
        let (waited, dropped) = match queue.paused.take() {
            Some(PausePolicy::Buffer | PausePolicy::Hold) => (queue.level.queued_frames, dropped),
            Some(PausePolicy::Drop) => (0, dropped),
            None => (0, 0),
        };
        let position = queue.level.taken_frames + queue.level.queued_frames - waited;
        drop(queue);
        self.changed.notify_one();
        Resumed { position, waited, dropped }
    }

    /// Changes bound and policy.
    pub fn set(&self, limit: usize, slow: Slow) {
        let mut queue = self.queue.lock();
        (queue.level.limit, queue.slow) = (limit, slow);
        queue.settle();
        drop(queue);
        self.changed.notify_one();
    }
}

impl Queue {
    fn push(&mut self, run: &Run) {
        if self.paused == Some(PausePolicy::Drop) {
            return self.level.dropped_in_pauses.add(run);
        }
        let room = self.level.limit.saturating_sub(self.level.queued_bytes);
        if run.len() <= room {
            return self.enqueue(run.clone());
        }
        match self.slow {
            Slow::Close => {
                self.level.overflowed = true;
                self.level.dropped.add(run);
            }
            Slow::DropNewest => {
                let mut rest = run.clone();
                let fitting = rest.split_fitting(room);
                if !fitting.is_empty() {
                    self.enqueue(fitting);
                }
                self.level.dropped.add(&rest);
                self.settle();
            }
            Slow::DropOldest => {
                self.drop_oldest(run.len() - room);
                let room = self.level.limit.saturating_sub(self.level.queued_bytes);
                // Of a run larger than the bound, the newest frames stay.
                let mut rest = run.clone();
                while rest.len() > room {
                    let first = rest.split_first();
                    self.level.dropped.add(&first);
                }
                if !rest.is_empty() {
                    self.enqueue(rest);
                }
                self.settle();
            }
        }
    }

    fn enqueue(&mut self, run: Run) {
        self.level.queued_bytes += run.len();
        self.level.queued_frames += run.frames();
        self.runs.push_back(run);
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

    /// What is queued now can't be dropped any more; returns the position behind it.
    fn promise(&mut self) -> u64 {
        self.promised.append(&mut self.runs);
        self.level.taken_frames + self.level.queued_frames
    }

    fn settle(&mut self) {
        let Level { queued_bytes, limit, .. } = self.level;
        if queued_bytes > limit / 2 {
            self.level.lagging = true;
        } else if queued_bytes <= limit / 8 {
            self.level.lagging = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{FrameKind, RunBuilder};

    /// A run of `n` frames of 10 bytes on the wire, each carrying its number.
    fn run(from: u64, n: u64) -> Run {
        let mut builder = RunBuilder::default();
        for number in from..from + n {
            builder.push(FrameKind::Binary, &number.to_be_bytes());
        }
        builder.finish()
    }

    fn drain(outbox: &Outbox, bytes: usize) -> Vec<u64> {
        let mut parts = VecDeque::new();
        outbox.take(bytes, &mut parts);
        let mut numbers = Vec::new();
        for part in parts {
            outbox.wrote(part.len());
            numbers.extend(part.chunks(10).map(|f| u64::from_be_bytes(f[2..].try_into().unwrap())));
        }
        numbers
    }

    #[test]
    fn the_newest_or_the_oldest_go() {
        let newest = Outbox::new(1_000, Slow::DropNewest);
        newest.push(&run(0, 90));
        newest.push(&run(90, 20));
        assert_eq!(newest.level().dropped.frames, 10);
        assert_eq!(drain(&newest, 9_999), (0..100).collect::<Vec<_>>());

        let oldest = Outbox::new(1_000, Slow::DropOldest);
        oldest.push(&run(0, 5));
        assert_eq!(oldest.position(), 5);
        oldest.push(&run(5, 90));
        oldest.push(&run(95, 25));
        assert_eq!(oldest.level().dropped, Dropped { frames: 20, bytes: 160 });
        assert_eq!(drain(&oldest, 9_999), (0..5).chain(25..120).collect::<Vec<_>>(), "what was promised stays");
        oldest.push(&run(0, 200));
        assert_eq!(drain(&oldest, 9_999), (100..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_queue_asks_to_be_closed() {
        let outbox = Outbox::new(1_000, Slow::Close);
        outbox.push(&run(0, 50));
        assert!(!outbox.level().lagging);
        outbox.push(&run(50, 50));
        assert!(outbox.level().lagging && !outbox.level().overflowed);
        outbox.push(&run(100, 1));
        assert!(outbox.level().overflowed);
        assert_eq!(drain(&outbox, 9_999).len(), 100);
        assert!(!outbox.level().lagging);
    }

    #[test]
    fn a_pause_is_exact() {
        let outbox = Outbox::new(10_000, Slow::Close);
        outbox.push(&run(0, 3));
        outbox.push(&run(3, 3));
        assert_eq!(drain(&outbox, 1), [0, 1, 2]);
        assert_eq!(outbox.pause(PausePolicy::Buffer), 3);
        outbox.push(&run(6, 4));
        assert!(drain(&outbox, 999).is_empty());
        assert_eq!(outbox.resume(), Resumed { position: 3, waited: 7, dropped: 0 });
        assert_eq!(outbox.pause(PausePolicy::Drop), 10);
        outbox.push(&run(10, 5));
        assert_eq!(drain(&outbox, 999), (3..10).collect::<Vec<_>>());
        assert_eq!(outbox.resume(), Resumed { position: 10, waited: 0, dropped: 5 });
        assert_eq!((outbox.level().dropped.frames, outbox.level().dropped_in_pauses.frames), (0, 5));
        assert_eq!(outbox.push_through(&run(10, 1)), 11);
    }

    proptest! {
        #[test]
        fn the_books_balance(steps: Vec<(u8, u8)>, slow in prop_oneof![Just(Slow::DropOldest), Just(Slow::DropNewest)]) {
            let outbox = Outbox::new(500, slow);
            let (mut pushed, mut out) = (0, Vec::new());
            for (what, n) in steps {
                match what % 4 {
                    0 | 1 => {
                        outbox.push(&run(pushed, u64::from(n % 40) + 1));
                        pushed += u64::from(n % 40) + 1;
                    }
                    2 => out.extend(drain(&outbox, usize::from(n))),
                    _ => { outbox.position(); }
                }
                let level = outbox.level();
                prop_assert!(level.queued_bytes <= 500);
                prop_assert_eq!(level.taken_frames + level.queued_frames + level.dropped.frames, pushed);
                prop_assert_eq!(level.queued_frames * 10, level.queued_bytes as u64);
            }
            out.extend(drain(&outbox, 99_999));
            prop_assert!(out.is_sorted());
            prop_assert_eq!(out.len() as u64, outbox.level().taken_frames);
        }
    }
}
