//! Feeds: a pair's story for one listener, from a cursor on and then live.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    Node, now_text,
    replay::{Admit, Gap, Replay},
};
use crate::{
    broker::{BrokerError, Page},
    hub::{Heard, Seat},
    protocol::{Event, EventKind, Failure, PairId, Position, Topic},
};

/// How many events a page of replay has: some 100 KiB.
const PAGE: usize = 256;
/// How many live events may wait for a listener before it must read them again.
const MAILBOX: usize = 256;
/// How long a writer may take to repair a history that a fail-over cut short: it is not said to have parted before.
const REPAIR: std::time::Duration = std::time::Duration::from_millis(1_500);
/// How long to wait before a failed read is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(250);

/// One thing to tell, and the position that it is told at.
pub type FeedItem = (Arc<Event>, Position);

/// A listener's place in a pair's story. Dropping it ends the listening.
pub struct Feed {
    node: Arc<Node>,
    pair: PairId,
    seat: u64,
    mailbox: mpsc::Receiver<Heard>,
    missed: Arc<AtomicBool>,
    replay: Replay,
    reading: Option<BoxFuture<'static, Result<Page, BrokerError>>>,
    due: std::collections::VecDeque<FeedItem>,
    /// A history that seemed to have parted was given the time to be repaired.
    waited: bool,
    /// What was told last is a gap whose size nobody knows.
    parted: bool,
    /// The beginning of the node's drain, until it is told.
    draining: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Feed {
    /// Listens to a pair: from `after` on, or from now on. Subscribes first and reads then, so that nothing falls
    /// between what was and what comes.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn open(node: &Arc<Node>, pair: PairId, after: Option<Position>) -> Result<Self, Failure> {
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let missed = Arc::new(AtomicBool::new(false));
        let seat = node.numbers.fetch_add(1, Relaxed);
        node.interest.add(&Topic::Pair(pair)).await?;
        node.hub.attach(pair, Seat { number: seat, mailbox: sender, missed: Arc::clone(&missed) });
        // From here on, dropping the feed undoes it.
        let mut feed = Self {
            node: Arc::clone(node),
            pair,
            seat,
            mailbox,
            missed,
            replay: Replay::new(after.unwrap_or_default()),
            reading: None,
            due: std::collections::VecDeque::new(),
            waited: false,
            parted: false,
            draining: Some(Box::pin(node.draining.clone().cancelled_owned())),
        };
        match after {
            Some(_) => feed.read(),
            None => {
                let head = node.broker.heads(&[Topic::Pair(pair)]).await?;
                feed.replay = Replay::new(head.first().copied().unwrap_or_default());
            }
        }
        Ok(feed)
    }

    /// Where the listener stands, before the first [`Feed::next`]: everything after it will be told.
    #[must_use]
    pub fn position(&self) -> Position {
        self.replay.at()
    }

    /// The next thing to tell. May be dropped while it waits; nothing is lost by that.
    pub async fn next(&mut self) -> FeedItem {
        loop {
            if let Some(item) = self.due.pop_front() {
                return item;
            }
            if let Some(reading) = &mut self.reading {
                let page = reading.await;
                self.reading = None;
                match page {
                    Ok(page) if self.may_be_repaired(&page) => self.read_later(REPAIR),
                    Ok(page) => {
                        self.waited = false;
                        self.take(page);
                    }
                    Err(_) => self.read_later(RETRY),
                }
                continue;
            }
            let heard = tokio::select! {
                heard = self.mailbox.recv() => heard,
                () = begun(&mut self.draining) => {
                    self.draining = None;
                    let notice = self.node.drain_notice.get().cloned().unwrap_or_default();
                    return self.aside(EventKind::NodeDraining, notice);
                }
            };
            // After a miss the history tells everything, this event included.
            let missed = self.missed.swap(false, Relaxed);
            match heard {
                Some(Heard::Event(..) | Heard::Head(_)) if missed => self.read(),
                Some(Heard::Event(event, position, previous)) => match self.replay.admit(position, previous) {
                    Admit::Next => self.due(event, position),
                    Admit::Known => {}
                    Admit::Missing => self.read(),
                },
                Some(Heard::Head(head)) if self.replay.behind(head) => self.read(),
                Some(Heard::Head(_)) => {}
                Some(Heard::Lost) => self.read(),
                Some(Heard::Aside(kind, data)) => {
                    if missed {
                        self.read();
                    }
                    return self.aside(kind, Value::clone(&data));
                }
                // The hub forgot this seat, which only dropping the feed does.
                None => std::future::pending().await,
            }
        }
    }

    /// Once, after the broker was away: the page shows another history than was heard.
    fn may_be_repaired(&mut self, page: &Page) -> bool {
        self.replay.parts(page) && self.node.broker_is_healing() && !std::mem::replace(&mut self.waited, true)
    }

    /// Says something about the connection, behind what is to be told already.
    pub fn say(&mut self, kind: EventKind, data: Value) {
        let item = self.aside(kind, data);
        self.due.push_back(item);
    }

    fn aside(&self, kind: EventKind, data: Value) -> FeedItem {
        (Arc::new(Event { kind, at: now_text(), data, cause: None }), self.replay.at())
    }

    fn read(&mut self) {
        let (broker, topic, at) = (Arc::clone(&self.node.broker), Topic::Pair(self.pair), self.replay.at());
        self.reading = Some(Box::pin(async move { broker.read(&topic, at, PAGE).await }));
    }

    fn read_later(&mut self, after: std::time::Duration) {
        let (broker, topic, at) = (Arc::clone(&self.node.broker), Topic::Pair(self.pair), self.replay.at());
        self.reading = Some(Box::pin(async move {
            tokio::time::sleep(after).await;
            broker.read(&topic, at, PAGE).await
        }));
    }

    /// Something is to be told next. A history that begins anew says so itself, and the listener sees it as well: of such
    /// gaps in a row, whose size nobody knows, one is told.
    fn due(&mut self, event: Arc<Event>, position: Position) {
        let parted = event.kind == EventKind::Gap && event.data["lost"].is_null();
        if !(std::mem::replace(&mut self.parted, parted) && parted) {
            self.due.push_back((event, position));
        }
    }

    fn due_gap(&mut self, data: Value, position: Position) {
        self.due(Arc::new(Event { kind: EventKind::Gap, at: now_text(), data, cause: None }), position);
    }

    fn take(&mut self, page: Page) {
        let turn = self.replay.page(page, PAGE);
        if let Some(Gap { lost, at }) = turn.gap {
            self.due_gap(json!({ "lost": lost }), at);
        }
        for entry in turn.entries {
            match Event::decode(&entry.payload) {
                Ok(event) => self.due(Arc::new(event), entry.position),
                // Kept by a newer version: said, not passed over.
                Err(_) => self.due_gap(json!({"lost": 1}), entry.position),
            }
        }
        if turn.again {
            self.read();
        }
    }
}

/// Completes when the drain begins, if that is still to be told.
async fn begun(draining: &mut Option<Pin<Box<WaitForCancellationFutureOwned>>>) {
    match draining {
        Some(draining) => draining.as_mut().await,
        None => std::future::pending().await,
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.node.hub.detach(self.pair, self.seat);
        let (node, topic) = (Arc::clone(&self.node), Topic::Pair(self.pair));
        self.node.spawn("unsubscribe", async move { node.interest.remove(&topic).await });
    }
}
