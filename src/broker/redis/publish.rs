//! Publishing: a bounded queue for each lane, and one task that empties it.
//!
//! Whoever publishes never waits. The task takes all that is queued (up to a batch), sends it over
//! the one connection that publishes, and waits for the answer before it takes more: so payloads keep their order,
//! and the busier the node, the bigger the batches.
//!
//! While Redis is away, what is queued grows old, and nobody wants frames of long ago in one burst. So a payload that
//! has waited for [`STALE`] is thrown away, younger ones go out in order when Redis is back, and what doesn't fit is
//! refused. A batch whose answer got lost is never sent again: at most once. Nor may it turn up late, out of a socket
//! that Redis had not read yet: the connection before is closed at Redis' end before anything goes over a new one.

use std::{collections::VecDeque, sync::Arc, task::Poll, time::Duration};

use bytes::{Bytes, BytesMut};
use fred::{
    clients::Client,
    error::Error,
    interfaces::{ClientInterface, ClientLike, EventInterface, PubsubInterface},
    types::{
        Value,
        client::ClientKillFilter,
        config::{Options, Server},
    },
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, broadcast},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    board::Board,
    connect::{ANSWER, quit},
};
use crate::broker::BrokerError;

/// What may wait: bytes of payloads and channel names, and payloads.
const QUEUE: Load = Load { bytes: 32 * 1024 * 1024, payloads: 131_072 };

/// What goes out as one pipeline: enough to be worth its round trip, little enough to be written at once.
const BATCH: Load = Load { bytes: 1024 * 1024, payloads: 1_024 };

/// How old a payload may grow in the queue: as old as a caller's patience.
const STALE: Duration = ANSWER;

/// How often the task looks whether Redis is back.
const AWAY: Duration = Duration::from_millis(20);

/// How long the last payloads may take when the node stops.
const FLUSH: Duration = Duration::from_secs(2);

/// How long a batch may go without an answer. The connection is given up before that; this is for fred's mistakes.
const BATCH_ANSWER: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Default)]
struct Load {
    bytes: usize,
    payloads: usize,
}

/// A message that waits.
pub(super) struct Waiting {
    channel: String,
    message: BytesMut,
    since: Instant,
}

impl Waiting {
    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    fn bytes(&self) -> usize {
        self.channel.len() + self.message.len()
    }
}

#[derive(Default)]
struct Inside {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

/// The queue towards Redis.
#[derive(Default)]
pub(super) struct Queue {
    inside: Mutex<Inside>,
    filled: Notify,
}

impl Queue {
    /// Queues a message.
    pub(super) fn push(&self, channel: String, message: BytesMut) -> Result<(), BrokerError> {
        let waiting = Waiting { channel, message, since: Instant::now() };
        let mut inside = self.inside.lock();
        if inside.waiting.len() >= QUEUE.payloads || inside.bytes + waiting.bytes() > QUEUE.bytes {
            return Err(BrokerError::Full);
        }
        inside.bytes += waiting.bytes();
        inside.waiting.push_back(waiting);
        let first = inside.waiting.len() == 1;
        drop(inside);
        if first {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Throws away what is stale.
    fn age(&self) {
        let mut inside = self.inside.lock();
        let mut stale = 0usize;
        while inside.waiting.front().is_some_and(|waiting| waiting.since.elapsed() >= STALE) {
            inside.pop();
            stale += 1;
        }
        drop(inside);
        if stale > 0 {
            tracing::warn!(payloads = stale, "payloads grew stale while the broker was away");
        }
    }

    /// Takes out what waits for the channels that are `meant`, in its order.
    pub(super) fn remove(&self, mut meant: impl FnMut(&str) -> bool) -> Vec<Waiting> {
        let mut inside = self.inside.lock();
        let (out, stay): (Vec<_>, Vec<_>) =
            std::mem::take(&mut inside.waiting).into_iter().partition(|waiting| meant(&waiting.channel));
        inside.bytes = stay.iter().map(Waiting::bytes).sum();
        inside.waiting = stay.into();
        out
    }

    /// Puts in what was taken out of another queue. It was within that one's bounds, and does not come again.
    pub(super) fn put_back(&self, waiting: Waiting) {
        let mut inside = self.inside.lock();
        inside.bytes += waiting.bytes();
        inside.waiting.push_back(waiting);
        drop(inside);
        self.filled.notify_one();
    }

    /// Takes the next batch, ready to leave; empty when nothing waits.
    fn take(&self, board: &Board) -> Vec<(String, Bytes)> {
        self.age();
        let mut inside = self.inside.lock();
        let mut batch = Vec::with_capacity(inside.waiting.len().min(BATCH.payloads));
        let mut bytes = 0;
        while batch.len() < BATCH.payloads && bytes < BATCH.bytes {
            let Some(waiting) = inside.pop() else { break };
            bytes += waiting.bytes();
            let message = board.stamp(&waiting.channel, waiting.message);
            batch.push((waiting.channel, message));
        }
        batch
    }
}

impl Inside {
    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.waiting.pop_front()?;
        self.bytes -= waiting.bytes();
        if self.waiting.is_empty() {
            // What an outage made it grow to is given back.
            self.waiting.shrink_to(4_096);
        }
        Some(waiting)
    }
}

/// The task: sends what is queued until `stop`, then what is left, for a limited time.
pub(super) async fn run(queue: Arc<Queue>, client: Client, board: Arc<Board>, stop: CancellationToken) {
    let mut publisher =
        Publisher { queue, board, reconnects: client.reconnect_rx(), client, lost: 0, told: long_ago(), own: None };
    let filled = |publisher: &Publisher| publisher.queue.clone();
    while stop.run_until_cancelled(filled(&publisher).filled.notified()).await.is_some() {
        publisher.empty(Some(&stop)).await;
    }
    if tokio::time::timeout(FLUSH, publisher.empty(None)).await.is_err() {
        let payloads = publisher.queue.inside.lock().waiting.len();
        tracing::warn!(payloads, "payloads were left over at the end");
    }
    quit(&publisher.client).await;
}

fn long_ago() -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(1)).unwrap_or(now)
}

struct Publisher {
    queue: Arc<Queue>,
    board: Arc<Board>,
    client: Client,
    reconnects: broadcast::Receiver<Server>,
    /// Payloads that may have been lost, and not been told of in the log.
    lost: usize,
    /// When some last were.
    told: Instant,
    /// How Redis calls the connection that was last published over.
    own: Option<Connection>,
}

/// A connection by its number, and by its address: after a fail-over the same number may be somebody else's.
struct Connection {
    id: String,
    address: String,
}

impl Publisher {
    /// Sends until the queue is empty (or `stop`).
    async fn empty(&mut self, stop: Option<&CancellationToken>) {
        while !stop.is_some_and(CancellationToken::is_cancelled) {
            if !self.client.is_connected() {
                self.queue.age();
                if self.queue.inside.lock().waiting.is_empty() {
                    return;
                }
                tokio::time::sleep(AWAY).await;
                continue;
            }
            if let Err(error) = self.bar_the_past().await {
                tracing::debug!(%error, "could not close the previous connection");
                tokio::time::sleep(AWAY).await;
                continue;
            }
            let batch = self.queue.take(&self.board);
            if batch.is_empty() {
                return;
            }
            let payloads = batch.len();
            match tokio::time::timeout(BATCH_ANSWER, self.send(batch)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    self.lost += payloads;
                    // At most once a second: while a slot moves, each batch may have some of it.
                    if self.told.elapsed() >= Duration::from_secs(1) {
                        tracing::warn!(payloads = self.lost, %error, "payloads may be lost");
                        (self.told, self.lost) = (Instant::now(), 0);
                    }
                    // Another primary has the slot by now, or this one is none any more.
                    self.board.doubts.notify_one();
                }
                Err(_) => {
                    tracing::error!(payloads, "a batch was never answered, starting over");
                    drop(self.client.force_reconnection().await);
                }
            }
        }
    }

    /// After a reconnect, makes sure that the previous connection is closed at the other end too. A Redis that hung
    /// may still find a batch in it, and would deliver that among what is published now.
    async fn bar_the_past(&mut self) -> Result<(), Error> {
        let options = Options { timeout: Some(ANSWER), fail_fast: true, ..Options::default() };
        let client = self.client.with_options(&options);
        while !self.reconnects.is_empty() {
            if let Some(Connection { id, address }) = self.own.take() {
                let filters = vec![ClientKillFilter::ID(id), ClientKillFilter::Addr(address)];
                if let Err(error) = client.client_kill::<i64>(filters).await {
                    tracing::debug!(%error, "the previous connection may have something left to say");
                }
            }
            drop(self.reconnects.try_recv());
        }
        if self.own.is_none() {
            let info: String = client.client_info().await?;
            let field = |name: &str| info.split(' ').find_map(|field| field.strip_prefix(name)).map(str::to_owned);
            self.own = field("id=").zip(field("addr=")).map(|(id, address)| Connection { id, address });
        }
        Ok(())
    }

    /// Sends a batch and waits for all of its answers.
    ///
    /// Not as one of fred's pipelines: fred writes a pipeline's commands to the socket one by one, but gathers
    /// commands that come singly while more are waiting (measured: 137 000 small payloads a second against 294 000).
    async fn send(&self, batch: Vec<(String, Bytes)>) -> Result<(), Error> {
        // Failing fast keeps fred from holding the batch back until the connection is there again.
        let options = Options { fail_fast: true, max_attempts: Some(1), ..Options::default() };
        let client = self.client.with_options(&options);
        let publish = |(channel, message)| {
            let client = &client;
            Box::pin(async move { client.spublish::<(), _, _>(channel, Value::Bytes(message)).await })
        };
        let mut sent: Vec<_> = batch.into_iter().map(publish).collect();
        let mut outcome = Ok(());
        // The first look at each future hands its command to fred's queue: so they go in their order.
        let mut waiting = Vec::with_capacity(sent.len());
        for mut one in sent.drain(..) {
            match futures_util::poll!(one.as_mut()) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => outcome = Err(error),
                Poll::Pending => waiting.push(one),
            }
        }
        for one in waiting {
            if let Err(error) = one.await {
                outcome = Err(error);
            }
        }
        outcome
    }
}
