//! The way out to one node: a bounded queue that never holds up the publisher, and never loses in silence.

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::broker::Delivery;

pub(super) struct Outlet {
    queue: mpsc::Sender<Delivery>,
    /// Whether deliveries are being thrown away, until the node has worked off half of its queue. The lock also
    /// makes the deliveries of concurrent publishers enter one at a time.
    overflowing: Mutex<bool>,
}

impl Outlet {
    pub(super) fn new(queue: mpsc::Sender<Delivery>) -> Self {
        Self { queue, overflowing: Mutex::new(false) }
    }

    /// Queues a delivery, or throws it away.
    ///
    /// The last place in the queue is reserved for [`Delivery::Lost`], which enters when the first delivery has to be
    /// thrown away. One is enough: as long as it waits, whatever else is thrown away has been lost "before this
    /// point" for a reader who then looks into the histories; and once it has been taken the queue is empty, so
    /// nothing is thrown away any more.
    pub(super) fn push(&self, delivery: impl Fn() -> Delivery) {
        let mut overflowing = self.overflowing.lock();
        let room = self.queue.capacity();
        if *overflowing && room < self.queue.max_capacity() / 2 {
            return;
        }
        *overflowing = room <= 1;
        let next = if *overflowing { Delivery::Lost } else { delivery() };
        // It can't be full (only this place sends, under the lock). It may be closed: then nobody is left to tell.
        drop(self.queue.try_send(next));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}
