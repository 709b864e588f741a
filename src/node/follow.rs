//! Following: a listener's place in one history, from a position on and then live, without a seam.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use serde_json::Value;

use super::{
    Node, pause,
    replay::{Admit, Gap, Replay},
    story::RETRY,
};
use crate::{
    broker::{BrokerError, Entry, Page},
    hub::{Ear, Heard, Mailbox, Piece, Seat, mailbox},
    protocol::{EventKind, Failure, Position, Topic},
};

/// How many entries a page of replay has: some 100 KiB of events.
const PAGE: usize = 256;
/// How many live entries may wait for a listener before it must read them again.
const MAILBOX: u32 = 256;
/// How long a writer may take to repair a history that a fail-over cut short: it is not said to have parted before.
const REPAIR: Duration = Duration::from_millis(1_500);

/// What comes next in a history.
#[derive(Debug, Clone)]
pub enum Followed {
    /// An entry.
    Piece(Arc<Piece>),
    /// Entries that can't be told: how many, where that is known, and where the listener stands behind them.
    Gap(Gap),
    /// Something about the connection, which is not kept.
    Aside(EventKind, Arc<Value>),
}

/// A listener's place in the history of any topic. Dropping it ends the listening.
pub struct Follower {
    node: Arc<Node>,
    topic: Topic,
    seat: u64,
    mailbox: Mailbox<Heard>,
    replay: Replay,
    reading: Option<BoxFuture<'static, Result<Page, BrokerError>>>,
    /// The reading waits for the broker, or for a writer.
    late: bool,
    due: VecDeque<Followed>,
    /// Where what was handed out last stands.
    at: Position,
    /// A history that seemed to have parted was given the time to be repaired.
    waited: bool,
}

impl Follower {
    /// Listens to a topic: from `after` on, or from now on. Subscribes first and reads then, so that nothing falls
    /// between what was and what comes.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn open(node: &Arc<Node>, topic: Topic, after: Option<Position>) -> Result<Self, Failure> {
        Self::open_as(node, topic, after, None).await
    }

    /// The same for one that is counted when it is told something.
    pub(super) async fn open_as(
        node: &Arc<Node>,
        topic: Topic,
        after: Option<Position>,
        ear: Option<Arc<Ear>>,
    ) -> Result<Self, Failure> {
        let (slot, mailbox) = mailbox(MAILBOX);
        let seat = node.numbers.fetch_add(1, Relaxed);
        node.interest.add(&topic).await?;
        node.hub.attach(&topic, Seat { number: seat, slot, ear });
        // From here on, dropping the follower undoes it.
        let at = after.unwrap_or_default();
        let mut follower = Self {
            node: Arc::clone(node),
            topic,
            seat,
            mailbox,
            replay: Replay::new(at),
            reading: None,
            late: false,
            due: VecDeque::new(),
            at,
            waited: false,
        };
        match after {
            Some(_) => follower.read(),
            None => {
                let head = node.broker.heads(std::slice::from_ref(&follower.topic)).await?;
                follower.at = head.first().copied().unwrap_or_default();
                follower.replay = Replay::new(follower.at);
            }
        }
        Ok(follower)
    }

    /// Where the listener stands: everything after it will be handed out.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at
    }

    /// What comes next. May be dropped while it waits; nothing is lost by that.
    pub async fn next(&mut self) -> Followed {
        loop {
            if let Some(next) = self.pop() {
                return next;
            }
            self.proceed().await;
        }
    }

    /// What comes next, if that is here already.
    pub fn next_here(&mut self) -> Option<Followed> {
        loop {
            if let Some(next) = self.pop() {
                return Some(next);
            }
            self.proceed().now_or_never()?;
        }
    }

    /// What is behind that, if it is here already.
    #[must_use]
    pub fn behind(&self) -> Option<&Followed> {
        self.due.front()
    }

    fn pop(&mut self) -> Option<Followed> {
        let next = self.due.pop_front()?;
        match &next {
            Followed::Piece(piece) => self.at = piece.position,
            Followed::Gap(gap) => self.at = gap.at,
            Followed::Aside(..) => {}
        }
        Some(next)
    }

    /// Completes when a page was read, or something was heard; whether or not there is something next then. May be
    /// dropped while it waits.
    pub fn proceed(&mut self) -> impl Future<Output = ()> + '_ {
        poll_fn(|cx| self.poll_proceed(cx))
    }

    /// The same, for whoever polls it.
    pub(super) fn poll_proceed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(reading) = &mut self.reading {
            let page = ready!(reading.as_mut().poll(cx));
            self.reading = None;
            match page {
                Ok(page) if self.may_be_repaired(&page) => self.read_after(REPAIR),
                Ok(page) => {
                    self.waited = false;
                    self.take(page);
                }
                Err(_) => self.read_after(RETRY),
            }
            return Poll::Ready(());
        }
        match ready!(self.mailbox.poll_read(cx)) {
            Some(heard) => self.hear(heard),
            // The hub forgot this seat, which only dropping the follower does.
            None => return Poll::Pending,
        }
        Poll::Ready(())
    }

    /// Whether all that is known to be in the history was handed out, or can't be for now: whoever waits for something
    /// else as well need not wait for this.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.due.is_empty() && (self.reading.is_none() || self.late)
    }

    /// Whether a reading waits for the broker, or for a writer.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.reading.is_some() && self.late
    }

    fn hear(&mut self, heard: Heard) {
        // After a miss the history tells everything, this entry included.
        let missed = self.mailbox.take_missed();
        match heard {
            Heard::Piece(_) | Heard::Head(_) if missed => self.read(),
            Heard::Piece(piece) => match self.replay.admit(piece.position, piece.previous) {
                Admit::Next => self.due.push_back(Followed::Piece(piece)),
                Admit::Known => {}
                Admit::Missing => self.read(),
            },
            Heard::Head(head) if self.replay.behind(head) => self.read(),
            Heard::Head(_) => {}
            Heard::Lost => self.read(),
            Heard::Aside(kind, data) => {
                if missed {
                    self.read();
                }
                self.due.push_back(Followed::Aside(kind, data));
            }
        }
    }

    /// Once, after the broker was away: the page shows another history than was heard.
    fn may_be_repaired(&mut self, page: &Page) -> bool {
        self.replay.parts(page) && self.node.broker_is_healing() && !std::mem::replace(&mut self.waited, true)
    }

    /// Has the history read: what is being read may have been looked up too early.
    pub(super) fn read(&mut self) {
        self.read_after(Duration::ZERO);
    }

    fn read_after(&mut self, wait: Duration) {
        self.read_behind(None, wait);
    }

    /// Reads the history behind where the listener stands, of which the `oldest` entry was seen a moment ago, if so.
    fn read_behind(&mut self, oldest: Option<(Position, Position)>, wait: Duration) {
        let (broker, topic, at) = (Arc::clone(&self.node.broker), self.topic.clone(), self.replay.at());
        self.late = !wait.is_zero();
        self.reading = Some(Box::pin(async move {
            pause(wait).await;
            if let Some((position, _)) = oldest
                && let Some(entries) = broker.read_on(&topic, at, position, PAGE).await?
            {
                let head = entries.last().map_or(at, |last| last.position);
                return Ok(Page { entries, known: true, oldest, head });
            }
            broker.read(&topic, at, PAGE).await
        }));
    }

    fn take(&mut self, page: Page) {
        let oldest = page.oldest;
        let turn = self.replay.page(page, PAGE);
        self.due.extend(turn.gap.map(Followed::Gap));
        self.due.extend(turn.entries.into_iter().map(|entry| Followed::Piece(Arc::new(piece(entry)))));
        if turn.again {
            self.read_behind(oldest, Duration::ZERO);
            self.send_for_page();
        }
    }

    /// Sends for the page now, so that it comes while the one before it is told.
    fn send_for_page(&mut self) {
        if let Some(page) = self.reading.as_mut().and_then(FutureExt::now_or_never) {
            self.reading = Some(Box::pin(std::future::ready(page)));
        }
    }
}

/// An entry as listeners share it.
pub(super) fn piece(entry: Entry) -> Piece {
    Piece::new(entry.position, entry.previous, entry.payload)
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.node.hub.detach(&self.topic, self.seat);
        let (node, topic) = (Arc::clone(&self.node), self.topic.clone());
        self.node.spawn("unsubscribe", async move { node.interest.remove(&topic).await });
    }
}
