//! Outboxes: what waits to be written to one client socket.
//!
//! Bounded in bytes. Everyone in the room may push, and whoever holds the wire takes: a postman, or the socket's actor
//! with what a postman could not put onto the wire at once. A push is one short lock and one reference count.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Hearing, Item, Level, Reached, Resumed, Source, bell::Bell, queue::Queue};
use crate::protocol::{Mark, PausePolicy, Run, Slow};

/// How far a flush went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing waits any more.
    All,
    /// The kernel takes no more for now.
    Blocked,
    /// It had its turn: more waits, and the kernel may take more.
    Turn,
}

/// The connection is gone.
#[derive(Debug)]
pub struct Disconnected;

/// Where what is queued goes.
pub trait Wire: Send + Sync {
    /// Writes what is queued, as far as the kernel takes it. Never waits.
    ///
    /// # Errors
    /// [`Disconnected`] when the peer is gone.
    fn flush(&self, outbox: &Outbox) -> Result<Flushed, Disconnected>;
}

/// The queue towards one client socket.
pub struct Outbox {
    queue: Mutex<Queue>,
    changed: Bell,
    news: AtomicBool,
    /// Whether anybody wants to know of marks.
    watches_marks: AtomicBool,
    /// Where postmen carry it, while a socket is served. It is the socket's own.
    wire: Mutex<Option<Weak<dyn Wire>>>,
    wired: AtomicBool,
}

impl Outbox {
    /// An empty queue with a bound in bytes.
    #[must_use]
    pub fn new(limit: usize, slow: Slow) -> Self {
        Self {
            queue: Mutex::new(Queue::new(limit, slow)),
            changed: Bell::default(),
            news: AtomicBool::new(false),
            watches_marks: AtomicBool::new(false),
            wire: Mutex::new(None),
            wired: AtomicBool::new(false),
        }
    }

    /// Does something to the queue, and passes the news of it on.
    fn with<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> (T, bool) {
        let mut queue = self.queue.lock();
        let outcome = change(&mut queue);
        let news = std::mem::take(&mut queue.news);
        drop(queue);
        if news {
            self.news.store(true, Relaxed);
        }
        (outcome, news)
    }

    /// Queues a run as far as the bound and the pause allow. True when it is to be carried: then a postman is to be sent.
    pub fn push(&self, run: &Run) -> bool {
        self.push_if(run, |_| true)
    }

    /// The same if what comes from there is for it.
    pub fn offer(&self, run: &Run, source: Source) -> bool {
        self.push_if(run, |queue| queue.hears(source))
    }

    fn push_if(&self, run: &Run, takes: impl FnOnce(&Queue) -> bool) -> bool {
        let (first, news) = self.with(|queue| {
            if !takes(queue) {
                return false;
            }
            let was_empty = queue.count.queued_frames == 0;
            queue.push(run);
            was_empty && queue.count.queued_frames > 0
        });
        // While frames wait somebody is busy writing, and will come back for these by itself.
        let carried = first && self.wired.load(Acquire);
        if first && !carried || news {
            self.changed.ring();
        }
        carried
    }

    /// From now on postmen carry what is pushed to this wire.
    pub fn attach(&self, wire: Weak<dyn Wire>) {
        *self.wire.lock() = Some(wire);
        self.wired.store(true, Release);
        // What was pushed before is the actor's.
        self.changed.ring();
    }

    /// No postman carries anything from now on, nor is one just about to.
    pub fn detach(&self) {
        self.wired.store(false, Release);
        *self.wire.lock() = None;
    }

    /// A postman carries what is queued, and wakes the actor for what is left and for news. True when it is to come again.
    pub(super) fn carry(&self) -> bool {
        let wire = self.wire.lock();
        let flushed = wire.as_ref().and_then(Weak::upgrade).map(|wire| wire.flush(self));
        drop(wire);
        if !matches!(flushed, Some(Ok(Flushed::All | Flushed::Turn))) || self.news.load(Relaxed) {
            self.changed.ring();
        }
        matches!(flushed, Some(Ok(Flushed::Turn)))
    }

    /// Whether marks are taken from now on.
    pub fn watch_marks(&self, watches: bool) {
        self.watches_marks.store(watches, Relaxed);
    }

    /// Puts a mark behind what is queued, if anybody wants to know. `weight` is how many bytes it holds.
    pub fn push_mark(&self, mark: &Arc<Mark>, weight: usize) {
        self.push_mark_if(mark, weight, |_| true);
    }

    /// The same if what comes from there is for it.
    pub fn offer_mark(&self, mark: &Arc<Mark>, weight: usize, source: Source) {
        self.push_mark_if(mark, weight, |queue| queue.hears(source));
    }

    fn push_mark_if(&self, mark: &Arc<Mark>, weight: usize, takes: impl FnOnce(&Queue) -> bool) {
        if self.watches_marks.load(Relaxed) {
            let ((), news) = self.with(|queue| {
                if takes(queue) {
                    queue.push_mark(mark, weight);
                }
            });
            if news {
                self.changed.ring();
            }
        }
    }

    /// What is for it from now on, of all that the room says.
    pub fn hear(&self, hearing: Hearing) {
        self.with(|queue| queue.hearing = hearing);
    }

    /// Takes out everything, of one that no socket has taken from: it is to cross to another.
    pub fn drain(&self) -> VecDeque<Item> {
        self.with(Queue::drain).0
    }

    /// Puts this before everything, in one that no socket has taken from. The bound does not hold for it.
    pub fn put_before(&self, items: impl IntoIterator<Item = Item>) {
        self.with(|queue| queue.put_before(items));
    }

    /// It is the next socket's from now on: what is queued stays, and is counted anew. Returns how many frames that is,
    /// and how many were dropped before.
    pub fn begin_anew(&self) -> (u64, u64) {
        self.with(Queue::begin_anew).0
    }

    /// Queues what the room has kept, for one that does not hear what the room says. The actor that does so writes it.
    pub fn push_kept(&self, run: &Run) {
        self.with(|queue| queue.push_kept(run.clone()));
    }

    /// The number of frames that it has been given so far, dropped ones left out.
    pub fn tail(&self) -> u64 {
        let level = self.level();
        level.taken_frames + level.queued_frames
    }

    /// At most `most` marks whose turn has come, and whether there are more; [`Outbox::take_news`] says when to ask.
    pub fn take_marks(&self, most: usize) -> (VecDeque<Reached>, bool) {
        self.with(|queue| queue.take_reached(most)).0
    }

    /// How many marks have not had their turn.
    pub fn waiting_marks(&self) -> u64 {
        self.queue.lock().waiting_marks()
    }

    /// Moves at most `bytes` bytes of whole runs, or one that is longer, to the actor, which must report them to
    /// [`Outbox::wrote`].
    pub fn take(&self, bytes: usize, into: &mut VecDeque<Bytes>) {
        self.with(|queue| queue.take(bytes, into));
    }

    /// Reports bytes as written: the queue shrinks. True when there are frames to be taken.
    pub fn wrote(&self, bytes: usize) -> bool {
        let wrote = |queue: &mut Queue| {
            queue.wrote(bytes);
            queue.count.queued_frames > 0
        };
        self.with(wrote).0
    }

    /// Completes when something was pushed into an empty queue, or there is news.
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.changed.heard()
    }

    /// Has [`Outbox::changed`] complete.
    pub(super) fn ring(&self) {
        self.changed.ring();
    }

    /// Whether there is news since this was last asked: a flag of the level is another, something was lost, or a mark's
    /// turn has come.
    pub fn take_news(&self) -> bool {
        self.news.load(Relaxed) && self.news.swap(false, Relaxed)
    }

    /// How it stands.
    pub fn level(&self) -> Level {
        self.queue.lock().level()
    }

    /// Whether so many more bytes fit.
    pub fn fits(&self, bytes: usize) -> bool {
        self.queue.lock().fits(bytes)
    }

    /// The number of frames that stand before whatever is pushed next. They will be delivered, come what may, as
    /// long as the socket lives.
    pub fn position(&self) -> u64 {
        self.with(Queue::promise).0
    }

    /// Queues one run even when paused or full, in its turn, and tells the position behind it. The actor that does so
    /// writes it.
    pub fn push_through(&self, run: &Run) -> u64 {
        let enqueue = |queue: &mut Queue| {
            queue.enqueue(run.clone());
            queue.promise()
        };
        self.with(enqueue).0
    }

    /// Stops delivery; returns the exact number of frames that will have been delivered before. What was queued
    /// already waits too, unless the policy drops what comes: then it is still delivered.
    pub fn pause(&self, policy: PausePolicy) -> u64 {
        self.with(|queue| queue.pause(policy)).0
    }

    /// How delivery is stopped, if it is.
    pub fn paused(&self) -> Option<PausePolicy> {
        self.queue.lock().paused
    }

    /// Lets delivery go on. The actor that does so writes what waits.
    pub fn resume(&self) -> Resumed {
        self.with(Queue::resume).0
    }

    /// Changes bound and policy. The actor that does so asks for news.
    pub fn set(&self, limit: usize, slow: Slow) {
        self.with(|queue| queue.set(limit, slow));
    }
}

#[cfg(test)]
mod tests;
