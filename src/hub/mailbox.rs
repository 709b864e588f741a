//! Mailboxes: bounded queues towards one reader that take no memory while they are empty. Most sockets are idle most of
//! the time, and each has several.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;

use super::bell::Bell;

/// Where mail is read.
pub struct Mailbox<T>(Arc<Shared<T>>);

/// Where mail is left. Dropping it closes the mailbox.
pub struct Slot<T>(Arc<Shared<T>>);

struct Shared<T> {
    inside: Mutex<Inside<T>>,
    bell: Bell,
}

struct Inside<T> {
    mail: VecDeque<T>,
    most: u32,
    /// Something did not fit.
    missed: bool,
    closed: bool,
}

/// Why mail could not be left, with the mail.
#[derive(Debug, PartialEq, Eq)]
pub enum Unsent<T> {
    /// So much is in it that nothing more fits.
    Full(T),
    /// Nobody reads it any more.
    Closed(T),
}

/// A mailbox for at most `most` pieces.
#[must_use]
pub fn mailbox<T>(most: u32) -> (Slot<T>, Mailbox<T>) {
    let inside = Mutex::new(Inside { mail: VecDeque::new(), most, missed: false, closed: false });
    let shared = Arc::new(Shared { inside, bell: Bell::default() });
    (Slot(Arc::clone(&shared)), Mailbox(shared))
}

impl<T> Slot<T> {
    /// Leaves mail, without waiting.
    ///
    /// # Errors
    /// [`Unsent`].
    pub fn send(&self, mail: T) -> Result<(), Unsent<T>> {
        let mut inside = self.0.inside.lock();
        if inside.closed {
            return Err(Unsent::Closed(mail));
        }
        if inside.mail.len() >= inside.most as usize {
            inside.missed = true;
            return Err(Unsent::Full(mail));
        }
        inside.mail.push_back(mail);
        drop(inside);
        self.0.bell.ring();
        Ok(())
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        self.0.inside.lock().closed = true;
        self.0.bell.ring();
    }
}

impl<T> Mailbox<T> {
    /// The next piece; `None` when there is none and there never will be. May be dropped while it waits.
    pub fn read(&mut self) -> impl Future<Output = Option<T>> + '_ {
        poll_fn(|cx| self.poll_read(cx))
    }

    /// The next piece, if there is one.
    pub fn read_here(&mut self) -> Option<T> {
        let mut inside = self.0.inside.lock();
        let mail = inside.mail.pop_front();
        if inside.mail.is_empty() {
            inside.mail = VecDeque::new();
        }
        mail
    }

    /// Whether something did not fit since this was last asked.
    pub fn take_missed(&mut self) -> bool {
        std::mem::take(&mut self.0.inside.lock().missed)
    }

    /// How much is in it.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.inside.lock().mail.len()
    }

    /// Nothing more can be left in it; what is in it can still be read.
    pub fn close(&mut self) {
        self.0.inside.lock().closed = true;
    }

    /// The same, for whoever polls it.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        // Who gets much mail gives way to others now and then.
        let turn = ready!(tokio::task::coop::poll_proceed(cx));
        loop {
            // Asked first: a bell that rings after the look is heard next time.
            let rung = self.0.bell.poll_heard(cx);
            let mail = self.read_here();
            if mail.is_some() || self.0.inside.lock().closed {
                turn.made_progress();
                return Poll::Ready(mail);
            }
            ready!(rung);
        }
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        self.close();
        let unread = std::mem::take(&mut self.0.inside.lock().mail);
        // Not under the lock: what is in it may be dropped for long.
        drop(unread);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn mail_comes_in_order_and_an_empty_mailbox_is_small() {
        let (slot, mut mailbox) = mailbox(2);
        assert_eq!((slot.send(1), slot.send(2), slot.send(3)), (Ok(()), Ok(()), Err(Unsent::Full(3))));
        assert!(mailbox.take_missed() && !mailbox.take_missed());
        assert_eq!((mailbox.read().await, mailbox.read().await), (Some(1), Some(2)));
        assert_eq!(mailbox.read().now_or_never(), None, "it waits");
        assert_eq!(mailbox.0.inside.lock().mail.capacity(), 0);
        assert!(slot.send(4).is_ok());
        drop(slot);
        assert_eq!((mailbox.read().await, mailbox.read().await, mailbox.read().await), (Some(4), None, None));
    }

    #[tokio::test]
    async fn a_closed_mailbox_takes_nothing_and_gives_what_is_in_it() {
        let (slot, mut mailbox) = mailbox(9);
        assert!(slot.send(1).is_ok());
        mailbox.close();
        assert_eq!(slot.send(2), Err(Unsent::Closed(2)));
        assert_eq!((mailbox.read_here(), mailbox.read_here()), (Some(1), None));
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let (slot, mut mailbox) = mailbox(1);
        let reading = async {
            let mut all = Vec::new();
            while let Some(n) = mailbox.read().await {
                all.push(n);
            }
            all
        };
        // On another thread: whoever sends is not the one who polls.
        let sending = std::thread::spawn(move || {
            for n in 0..10_000 {
                while slot.send(n).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        assert_eq!(reading.await, (0..10_000).collect::<Vec<_>>());
        assert!(sending.join().is_ok());
    }
}
