//! Postmen: a few tasks that go from outbox to outbox and have what is queued put onto the wire.
//!
//! To wake each receiver's actor for each frame would cost as much as the frame. A postman is woken once for all the
//! receivers of a frame that wait, and the actors sleep on. What comes while one is under way waits in the outboxes and
//! goes in the same write, so that less is done for each frame the more there is to do.
//!
//! What a wire does not take at once is left to the socket's own actor, so that nobody waits for anybody else's.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;

use super::{Outbox, bell::Bell};

/// So much is one postman's, in bytes: a second one would cost more to wake than it saves.
const A_ROUND: usize = 512 << 10;
/// As much as so many bytes costs each write (measured: 4.8 µs for one with 64 bytes, 10 for one with 48 KiB). With a
/// small message to a hundred, two postmen take half the time of one, at hardly more of the processor's.
const A_WRITE: usize = 32 << 10;
/// After how many outboxes a postman lets others run.
const A_TURN: usize = 64;

/// All postmen of a node, and what they are to carry.
pub struct Postmen {
    rounds: Vec<Round>,
    next: AtomicUsize,
}

#[derive(Default)]
struct Round {
    due: Mutex<Vec<Arc<Outbox>>>,
    bell: Bell,
}

impl Postmen {
    /// So many.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            rounds: std::iter::repeat_with(Round::default).take(count.max(1)).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.rounds.len()
    }

    /// Has outboxes emptied into which so many bytes were put: shared out, where that is much.
    pub fn send(&self, mut due: Vec<Arc<Outbox>>, bytes: usize) {
        let parts = (due.len() * (A_WRITE + bytes)).div_ceil(A_ROUND).min(self.rounds.len());
        let first = self.next.fetch_add(1, Relaxed);
        for part in (0..parts).rev() {
            let round = &self.rounds[(first + part) % self.rounds.len()];
            let mut share = due.split_off(due.len() * part / (part + 1));
            round.due.lock().append(&mut share);
            round.bell.ring();
        }
    }

    /// The work of one of them, without end.
    pub async fn work(&self, number: usize) {
        let round = &self.rounds[number];
        loop {
            round.bell.heard().await;
            let mut carried = 0;
            loop {
                let due = std::mem::take(&mut *round.due.lock());
                if due.is_empty() {
                    break;
                }
                let mut unfinished = Vec::new();
                for outbox in due {
                    if outbox.carry() {
                        unfinished.push(outbox);
                    }
                    carried += 1;
                    if carried % A_TURN == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                round.due.lock().append(&mut unfinished);
            }
        }
    }
}
