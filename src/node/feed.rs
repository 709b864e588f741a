//! Feeds: a pair's story for one listener, from a cursor on and then live.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use serde_json::{Value, json};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    Node,
    follow::{Followed, Follower},
    now_text,
    replay::Gap,
};
use crate::protocol::{Event, EventKind, Failure, PairId, Position, Topic};

/// One thing to tell, and the position that it is told at.
pub type FeedItem = (Arc<Event>, Position);

/// A listener's place in a pair's story. Dropping it ends the listening.
pub struct Feed {
    node: Arc<Node>,
    story: Follower,
    due: VecDeque<FeedItem>,
    /// What was told last is a gap whose size nobody knows.
    parted: bool,
    /// The beginning of the node's drain, until it is told.
    draining: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Feed {
    /// Listens to a pair: from `after` on, or from now on.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn open(node: &Arc<Node>, pair: PairId, after: Option<Position>) -> Result<Self, Failure> {
        Ok(Self {
            node: Arc::clone(node),
            story: Follower::open(node, Topic::Pair(pair), after).await?,
            due: VecDeque::new(),
            parted: false,
            draining: Some(Box::pin(node.draining.clone().cancelled_owned())),
        })
    }

    /// Where the listener stands, before the first [`Feed::next`]: everything after it will be told.
    #[must_use]
    pub fn position(&self) -> Position {
        self.story.position()
    }

    /// The next thing to tell. May be dropped while it waits; nothing is lost by that.
    pub async fn next(&mut self) -> FeedItem {
        loop {
            if let Some(item) = self.due.pop_front() {
                return item;
            }
            let followed = tokio::select! {
                followed = self.story.next() => followed,
                () = begun(&mut self.draining) => {
                    self.draining = None;
                    let notice = self.node.drain_notice.get().cloned().unwrap_or_default();
                    return self.aside(EventKind::NodeDraining, notice);
                }
            };
            match followed {
                Followed::Piece(piece) => match piece.event() {
                    Some(event) => self.due(Arc::clone(event)),
                    // Kept by a newer version: said, not passed over.
                    None => self.due_gap(Some(1)),
                },
                Followed::Gap(Gap { lost, .. }) => self.due_gap(lost),
                Followed::Aside(kind, data) => return self.aside(kind, Value::clone(&data)),
            }
        }
    }

    /// Says something about the connection, behind what is to be told already.
    pub fn say(&mut self, kind: EventKind, data: Value) {
        let item = self.aside(kind, data);
        self.due.push_back(item);
    }

    fn aside(&self, kind: EventKind, data: Value) -> FeedItem {
        (Arc::new(Event { kind, at: now_text(), data, cause: None }), self.story.position())
    }

    /// Something is to be told next. A history that begins anew says so itself, and the listener sees it as well: of such
    /// gaps in a row, whose size nobody knows, one is told.
    fn due(&mut self, event: Arc<Event>) {
        let parted = event.kind == EventKind::Gap && event.data["lost"].is_null();
        if !(std::mem::replace(&mut self.parted, parted) && parted) {
            self.due.push_back((event, self.story.position()));
        }
    }

    fn due_gap(&mut self, lost: Option<u64>) {
        self.due(Arc::new(Event {
            kind: EventKind::Gap,
            at: now_text(),
            data: json!({ "lost": lost }),
            cause: None,
        }));
    }
}

/// Completes when the drain begins, if that is still to be told.
async fn begun(draining: &mut Option<Pin<Box<WaitForCancellationFutureOwned>>>) {
    match draining {
        Some(draining) => draining.as_mut().await,
        None => std::future::pending().await,
    }
}
