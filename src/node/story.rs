//! Flow 3, an event: raised by whoever saw it, appended in order, and only then is its cause answered.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Node, ReplyTo, now_text};
use crate::{
    broker::BrokerError,
    protocol::{Cause, Event, EventKind, Failure, PairId, Position, Reply, Topic},
};

/// How many events may wait for the broker. Beyond, the oldest unwritten one is given up, and counted in the log.
const MOST_WAITING: usize = 256;
/// How long between two attempts to append the same event.
const RETRY: Duration = Duration::from_millis(250);

struct Chapter {
    payload: bytes::Bytes,
    /// The same for every attempt, so that an attempt whose answer was lost adds nothing twice.
    nonce: u64,
    /// Sent when the event stands in the history, or when the first attempt failed: the effect has happened anyhow.
    reply: Option<(ReplyTo, Reply)>,
}

/// The events of one pair that one actor raises, in order. The actor polls it beside everything else, so that a slow
/// broker delays no frame.
pub struct Story {
    node: Arc<Node>,
    pair: PairId,
    waiting: VecDeque<Chapter>,
    appending: Option<BoxFuture<'static, Result<Position, BrokerError>>>,
}

impl Story {
    /// The story of a pair; nothing is told yet.
    #[must_use]
    pub fn new(node: &Arc<Node>, pair: PairId) -> Self {
        Self { node: Arc::clone(node), pair, waiting: VecDeque::new(), appending: None }
    }

    /// Raises an event.
    pub fn raise(&mut self, kind: EventKind, data: Value, cause: Option<Cause>) {
        self.push(kind, data, cause, None);
    }

    /// Raises the event that is the effect of a command, and replies to the command once it stands.
    pub fn raise_and_reply(&mut self, kind: EventKind, data: Value, cause: Cause, reply: ReplyTo, outcome: Reply) {
        self.push(kind, data, Some(cause), Some((reply, outcome)));
    }

    fn push(&mut self, kind: EventKind, data: Value, cause: Option<Cause>, reply: Option<(ReplyTo, Reply)>) {
        let event = Event { kind, at: now_text(), data, cause };
        let Ok(payload) = event.encode() else { return tracing::error!(?kind, "an event could not be encoded") };
        if self.waiting.len() >= MOST_WAITING {
            // The first may be on its way already.
            if let Some(lost) = self.waiting.remove(1) {
                tracing::warn!(pair = %self.pair, "an event was given up: the broker is away for too long");
                self.answer(lost.reply);
            }
        }
        let chapter = Chapter { payload: payload.into(), nonce: rand::random(), reply };
        self.waiting.push_back(chapter);
    }

    /// Whether something waits to be appended: when not, [`Story::proceed`] would wait for ever.
    #[must_use]
    pub fn pending(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Appends the next event. May be dropped while it waits; nothing is lost or doubled by that.
    pub async fn proceed(&mut self) {
        let Some(chapter) = self.waiting.front() else { return std::future::pending().await };
        let (node, topic) = (Arc::clone(&self.node), Topic::Pair(self.pair));
        let (nonce, payload) = (chapter.nonce, chapter.payload.clone());
        let appending = self.appending.get_or_insert_with(|| {
            Box::pin(async move { node.broker.append(&topic, nonce, payload, &node.settings.keep).await })
        });
        let result = appending.await;
        self.appending = None;
        let reply = self.waiting.front_mut().and_then(|chapter| chapter.reply.take());
        self.answer(reply);
        match result {
            Ok(_) => drop(self.waiting.pop_front()),
            Err(error) => {
                tracing::debug!(pair = %self.pair, error = &error as &dyn std::error::Error, "an event must wait");
                let node = Arc::clone(&self.node);
                let chapter = self.waiting.front().map(|c| (c.nonce, c.payload.clone()));
                let topic = Topic::Pair(self.pair);
                self.appending = chapter.map(|(nonce, payload)| -> BoxFuture<'static, _> {
                    Box::pin(async move {
                        sleep(RETRY).await;
                        node.broker.append(&topic, nonce, payload, &node.settings.keep).await
                    })
                });
            }
        }
    }

    /// Appends everything that waits, at most until `deadline`.
    pub async fn finish(&mut self, deadline: Instant) {
        while self.pending() {
            if timeout_at(deadline, self.proceed()).await.is_err() {
                tracing::warn!(pair = %self.pair, events = self.waiting.len(), "events were given up at the end");
                while let Some(chapter) = self.waiting.pop_front() {
                    self.answer(chapter.reply);
                }
            }
        }
    }

    fn answer(&self, reply: Option<(ReplyTo, Reply)>) {
        if let Some((to, outcome)) = reply {
            self.node.reply(to, outcome);
        }
    }
}

impl Node {
    /// Raises one event for a pair that has no actor here.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub(super) async fn raise(
        &self,
        pair: PairId,
        kind: EventKind,
        data: Value,
        cause: Option<Cause>,
    ) -> Result<Position, Failure> {
        let payload = Event { kind, at: now_text(), data, cause }.encode()?;
        let (nonce, topic, payload) = (rand::random(), Topic::Pair(pair), bytes::Bytes::from(payload));
        let append = || self.broker.append(&topic, nonce, payload.clone(), &self.settings.keep);
        match append().await {
            Ok(position) => Ok(position),
            // The same nonce: if only the answer was lost, this finds the first one.
            Err(_) => Ok(append().await?),
        }
    }
}
