//! Frames on their way into a room's history: one append at a time, which carries what has come in meanwhile.

use std::{collections::VecDeque, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::time::Duration;

use crate::{
    broker::{BrokerError, Share, Writer},
    node::{Node, ReplyTo, pause},
    protocol::{Envelope, Fence, History, PairId, Position, Reply, RoomName, Run},
};

/// How much one append carries, in shares and bytes; what comes meanwhile waits for the next.
const SHARES: usize = 16;
const BATCH: usize = 256 << 10;
/// With this many bytes waiting its client is not read: TCP holds it back.
const FULL: usize = 1 << 20;
/// How many of the last appends are remembered by their place.
const PLACES: usize = 32;
/// How long between two attempts to reach the broker.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// What waits to be appended, as one share.
struct Waiting {
    bytes: BytesMut,
    frames: u64,
    /// Those of them that the client is not given itself.
    own: u64,
    /// Nothing may be joined to it.
    closed: bool,
    reply: Option<(ReplyTo, Reply)>,
}

/// What is being appended, in one contribution.
struct Batch {
    writer: Writer,
    shares: Vec<Share>,
    frames: u64,
    bytes: usize,
    replies: Vec<(ReplyTo, Reply)>,
}

/// The frames of one client, in order.
pub(super) struct Sending {
    node: Arc<Node>,
    pair: PairId,
    fence: Fence,
    room: RoomName,
    history: History,
    waiting: VecDeque<Waiting>,
    batch: Option<Batch>,
    appending: Option<BoxFuture<'static, Result<Position, BrokerError>>>,
    bytes: usize,
    /// The own frames that stand in the history.
    own: u64,
    /// Where they stand: behind which entry there are how many.
    places: VecDeque<(u64, u64)>,
    /// Nothing more comes: its socket has ended, or has left the room.
    finishing: bool,
}

impl Sending {
    /// Into the history of a room in which the pair has `own` frames.
    pub(super) fn new(
        node: &Arc<Node>,
        (pair, fence): (PairId, Fence),
        room: RoomName,
        history: History,
        own: u64,
    ) -> Self {
        Self {
            node: Arc::clone(node),
            pair,
            fence,
            room,
            history,
            waiting: VecDeque::new(),
            batch: None,
            appending: None,
            bytes: 0,
            own,
            places: [(0, own)].into(),
            finishing: false,
        }
    }

    /// How much the history keeps from now on.
    pub(super) fn keep(&mut self, history: History) {
        self.history = history;
    }

    /// Whether the client is to be held back.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= FULL
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.batch.is_none()
    }

    /// Whether an append is under way: how many own frames stand is not known until it is answered.
    pub(super) fn is_busy(&self) -> bool {
        self.batch.is_some()
    }

    /// How many own frames stand behind an entry and before.
    pub(super) fn own_at(&self, offset: u64) -> u64 {
        let before = self.places.iter().rev().find(|(at, _)| *at <= offset);
        before.or(self.places.front()).map_or(self.own, |(_, own)| *own)
    }

    /// Takes frames of the client, which it is given itself or not.
    pub(super) fn push(&mut self, run: &Run, echo: bool, reply: Option<(ReplyTo, Reply)>) {
        let own = if echo { 0 } else { run.frames() };
        self.bytes += run.len();
        let last = self.waiting.back_mut();
        if let Some(last) = last.filter(|last| !last.closed && last.bytes.len() + run.len() <= BATCH)
            && (last.own == 0) == echo
        {
            last.bytes.extend_from_slice(run.wire());
            last.frames += run.frames();
            last.own += own;
            last.closed = reply.is_some();
            last.reply = reply;
            return;
        }
        let mut bytes = BytesMut::from(&Envelope::ordered_head((!echo).then_some(self.pair))[..]);
        bytes.extend_from_slice(run.wire());
        let closed = reply.is_some();
        self.waiting.push_back(Waiting { bytes, frames: run.frames(), own, closed, reply });
    }

    /// Takes something that stands among the frames without being one.
    pub(super) fn push_between(&mut self, bytes: Bytes, reply: Option<(ReplyTo, Reply)>) {
        self.bytes += bytes.len();
        self.waiting.push_back(Waiting { bytes: bytes.into(), frames: 0, own: 0, closed: true, reply });
    }

    /// Appends what waits, or a part of it; completes when that stands. May be dropped while it waits.
    pub(super) async fn proceed(&mut self) {
        if self.batch.is_none() {
            let Some(batch) = self.next_batch() else { return std::future::pending().await };
            self.batch = Some(batch);
        }
        let Some(batch) = &self.batch else { return };
        if self.appending.is_none() {
            self.appending = Some(self.attempt(batch, Duration::ZERO));
        }
        let Some(appending) = &mut self.appending else { return };
        match appending.await {
            Ok(last) => {
                self.appending = None;
                let Some(batch) = self.batch.take() else { return };
                self.bytes = self.bytes.saturating_sub(batch.bytes);
                self.own = batch.writer.total;
                self.places.push_back((last.offset, self.own));
                self.places.drain(..self.places.len().saturating_sub(PLACES));
                for (to, outcome) in batch.replies {
                    self.node.reply(to, outcome);
                }
            }
            // Whether it stands or not: made again, it stands once.
            Err(_) => self.appending = self.batch.as_ref().map(|batch| self.attempt(batch, RETRY)),
        }
    }

    fn next_batch(&mut self) -> Option<Batch> {
        let writer = Writer { name: self.pair.to_string(), batch: rand::random(), total: self.own };
        let mut batch = Batch { writer, shares: Vec::new(), frames: 0, bytes: 0, replies: Vec::new() };
        let fits = |batch: &Batch, next: &Waiting| {
            batch.shares.is_empty() || batch.shares.len() < SHARES && batch.bytes + next.bytes.len() <= BATCH
        };
        while self.waiting.front().is_some_and(|next| fits(&batch, next))
            && let Some(next) = self.waiting.pop_front()
        {
            batch.writer.total += next.own;
            batch.frames += next.frames;
            batch.bytes += next.bytes.len();
            batch.replies.extend(next.reply);
            batch.shares.push(Share { weight: next.frames, payload: next.bytes.freeze() });
        }
        (!batch.shares.is_empty()).then_some(batch)
    }

    fn attempt(&self, batch: &Batch, after: Duration) -> BoxFuture<'static, Result<Position, BrokerError>> {
        let (writer, shares) = (batch.writer.clone(), batch.shares.clone());
        let (node, room, history) = (Arc::clone(&self.node), self.room.clone(), self.history);
        let (whose, finishing) = ((self.pair, self.fence), self.finishing);
        Box::pin(async move {
            pause(after).await;
            if !finishing && !node.serves(whose) {
                // Others took the pair; the actor is about to hear of that.
                return Err(BrokerError::Full);
            }
            node.contribute(&room, Some(&writer), &shares, history).await
        })
    }

    /// Appends all that waits.
    pub(super) async fn finish(&mut self) {
        self.finishing = true;
        while !self.is_idle() {
            self.proceed().await;
        }
    }

    /// Gives up what does not stand: how many frames that are. Who waits for a reply is to ask again.
    pub(super) fn give_up(&mut self) -> u64 {
        let batch = self.batch.take();
        let waiting = self.waiting.drain(..);
        let mut frames = batch.as_ref().map_or(0, |batch| batch.frames);
        let mut replies = batch.map_or_else(Vec::new, |batch| batch.replies);
        for one in waiting {
            frames += one.frames;
            replies.extend(one.reply);
        }
        for (to, _) in replies {
            self.node.reply(to, Reply::NotHere);
        }
        frames
    }
}
