//! Publishing: a bounded queue for each lane, and one task that empties it.
//!
//! Whoever publishes never waits. The task takes all that is queued (up to a batch), writes it to the one connection
//! that publishes, and waits for the answers before it takes more: so payloads keep their order, and the busier the
//! node, the bigger the batches.
//!
//! While Redis is away, what is queued grows old, and nobody wants frames of long ago in one burst. So a payload that
//! has waited for [`STALE`] is thrown away, younger ones go out in order when Redis is back, and what doesn't fit is
//! refused. A batch whose answer got lost is never sent again: at most once. Nor may it turn up late, out of a socket
//! that Redis had not read yet: the connection before is closed at Redis' end before anything goes over a new one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use fred::{error::Error, types::config::Config};
use parking_lot::Mutex;
use redis_protocol::resp3::types::BytesFrame;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    board::Board,
    connect::{ANSWER, CONNECT, Retry},
    message::Outgoing,
    wire::{Sheet, Wire, is_refusal, refusal, text},
};
use crate::broker::BrokerError;

/// What may wait: bytes of payloads and channel names, and payloads.
const QUEUE: Load = Load { bytes: 32 * 1024 * 1024, payloads: 131_072 };

/// What goes out as one pipeline: enough to be worth its round trip, little enough to be written at once.
const BATCH: Load = Load { bytes: 1024 * 1024, payloads: 1_024 };

/// How old a payload may grow in the queue: as old as a caller's patience.
const STALE: Duration = ANSWER;

/// How often what waits is looked at while Redis is away.
const AWAY: Duration = Duration::from_millis(100);

/// How long the last payloads may take when the node stops.
const FLUSH: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Default)]
struct Load {
    bytes: usize,
    payloads: usize,
}

/// A message that waits.
pub(super) struct Waiting {
    channel: String,
    message: Outgoing,
    since: Instant,
}

impl Waiting {
    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    fn bytes(&self) -> usize {
        self.channel.len() + self.message.bytes()
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
    pub(super) fn push(&self, channel: String, message: Outgoing) -> Result<(), BrokerError> {
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

    /// Takes the next batch, ready to leave, and how many payloads it has.
    fn take(&self, board: &Board) -> (Sheet, usize) {
        self.age();
        let mut inside = self.inside.lock();
        let mut sheet = Sheet::default();
        let (mut bytes, mut payloads) = (0, 0);
        while payloads < BATCH.payloads && bytes < BATCH.bytes {
            let Some(waiting) = inside.pop() else { break };
            bytes += waiting.bytes();
            payloads += 1;
            for piece in board.stamp(&waiting.channel, waiting.message) {
                sheet.add(piece);
            }
        }
        (sheet, payloads)
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

/// The task: sends what is queued.
pub(super) struct Publisher {
    queue: Arc<Queue>,
    board: Arc<Board>,
    config: Config,
    /// `None` while Redis is away.
    wire: Option<Wire>,
    retry: Retry,
    /// How Redis calls the connection that was last published over, until it is known to be closed.
    own: Option<Connection>,
    /// Payloads that may have been lost, and not been told of in the log.
    lost: usize,
    /// When some last were.
    told: Option<Instant>,
}

/// A connection by its number, and by its address: after a fail-over the same number may be somebody else's.
struct Connection {
    id: String,
    address: String,
}

impl Publisher {
    /// Connects, within `limit`.
    pub(super) async fn open(
        queue: Arc<Queue>,
        config: Config,
        board: Arc<Board>,
        limit: Duration,
    ) -> Result<Self, Error> {
        let mut this =
            Self { queue, board, config, wire: None, retry: Retry::soon(), own: None, lost: 0, told: None };
        this.wire = Some(this.next_wire(limit).await?);
        Ok(this)
    }

    /// Sends until `stop`, then what is left, for a limited time.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let queue = Arc::clone(&self.queue);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = queue.filled.notified() => {}
                () = self.is_broken() => self.connect().await,
            }
            self.empty(Some(&stop)).await;
        }
        if timeout(FLUSH, self.empty(None)).await.is_err() {
            let payloads = self.queue.inside.lock().waiting.len();
            tracing::warn!(payloads, "payloads were left over at the end");
        }
    }

    /// Completes when there is no connection, and it is time for another.
    async fn is_broken(&mut self) {
        if let Some(wire) = &mut self.wire {
            // Nothing is owed: whatever comes is the end.
            let end = wire.next().await.err();
            tracing::debug!(error = end.map(|error| error.to_string()), "lost the publisher's connection");
            self.wire = None;
            self.retry.failed();
        }
        sleep_until(self.retry.at()).await;
    }

    async fn connect(&mut self) {
        match self.next_wire(CONNECT).await {
            Ok(wire) => self.wire = Some(wire),
            Err(error) => {
                tracing::debug!(%error, "could not connect the publisher yet");
                self.retry.failed();
            }
        }
    }

    /// Connects, and makes sure that the connection before is closed at the other end, too. A Redis that hung may still
    /// find a batch in it, and would deliver that among what is published now.
    async fn next_wire(&mut self, limit: Duration) -> Result<Wire, Error> {
        let mut wire = Wire::open(&self.config, limit).await?;
        if let Some(Connection { id, address }) = &self.own {
            heeded(wire.ask(&["CLIENT", "KILL", "ID", id, "ADDR", address]).await)?;
        }
        let info = heeded(wire.ask(&["CLIENT", "INFO"]).await)?;
        self.own = info.as_ref().and_then(text).and_then(Connection::read);
        Ok(wire)
    }

    /// Sends until the queue is empty (or `stop`).
    async fn empty(&mut self, stop: Option<&CancellationToken>) {
        while !stop.is_some_and(CancellationToken::is_cancelled) {
            let Some(wire) = &mut self.wire else {
                self.queue.age();
                if self.queue.inside.lock().waiting.is_empty() {
                    return;
                }
                if timeout(AWAY, self.is_broken()).await.is_ok() {
                    self.connect().await;
                }
                continue;
            };
            let (sheet, payloads) = self.queue.take(&self.board);
            if payloads == 0 {
                return;
            }
            let Err(error) = send(wire, sheet, payloads).await else {
                self.retry = Retry::soon();
                continue;
            };
            self.lost += payloads;
            // At most once a second: while a slot moves, each batch may have some of it.
            if self.told.is_none_or(|told| told.elapsed() >= Duration::from_secs(1)) {
                tracing::warn!(payloads = self.lost, %error, "payloads may be lost");
                (self.told, self.lost) = (Some(Instant::now()), 0);
            }
            // Another primary has the slot by now, or this one is none any more.
            self.board.doubts.notify_one();
            if !is_refusal(&error) {
                self.wire = None;
            }
        }
    }
}

impl Connection {
    fn read(info: &str) -> Option<Self> {
        let field = |name: &str| info.split(' ').find_map(|field| field.strip_prefix(name)).map(str::to_owned);
        field("id=").zip(field("addr=")).map(|(id, address)| Self { id, address })
    }
}

/// Whoever may not ask such things of Redis does without.
fn heeded(answer: Result<BytesFrame, Error>) -> Result<Option<BytesFrame>, Error> {
    match answer {
        Err(error) if is_refusal(&error) => {
            tracing::debug!(%error, "the previous connection may have something left to say");
            Ok(None)
        }
        answer => answer.map(Some),
    }
}

/// Sends a batch and waits for all of its answers. The last refusal is told.
async fn send(wire: &mut Wire, sheet: Sheet, payloads: usize) -> Result<(), Error> {
    wire.write(sheet).await?;
    let mut outcome = Ok(());
    for _ in 0..payloads {
        if let Some(refusal) = refusal(&wire.answer().await?) {
            outcome = Err(refusal);
        }
    }
    outcome
}
