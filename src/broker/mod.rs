//! Floor 1: the other nodes, seen through two narrow ports.
//!
//! [`Broker`] carries bytes between nodes and keeps histories; [`Registry`] keeps the records that exactly one node
//! may hold. Neither knows what a frame, a command or an event is. [`memory`] is the embedded back end (one node
//! alone, or many nodes in one test process), [`redis`] the distributed one. [`conformance`] is the contract of
//! both, a function per clause.

pub mod conformance;
pub mod memory;
pub mod redis;
mod registry;
mod tally;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub use registry::{
    Beat, Begun, CROWD, Census, Changes, Claim, Counted, Group, Holdings, MOST_CHANGES, Member, Peer, Record,
    Registry, Rule, Sentence, Step,
};

pub use tally::{Share, Tally, Writer};

use crate::protocol::{Fence, Position, Topic};

/// Why the broker did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// It can't be reached, or did not answer in time: whether it took effect is unknown.
    #[error("the broker is unavailable")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The bounded queue towards it is full: nothing was sent.
    #[error("the queue to the broker is full")]
    Full,
    /// It answered something that this version does not understand.
    #[error("the broker's answer was not understood: {0}")]
    Garbled(String),
}

impl BrokerError {
    /// Whether what was asked for may have been done.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        !matches!(self, Self::Full)
    }
}

/// One entry of a history.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Where it stands.
    pub position: Position,
    /// Where its predecessor stands: entries form a chain, so that a hole can't hide.
    pub previous: Position,
    /// What was appended.
    pub payload: Bytes,
}

/// A part of a history, as one atomic look at it gave it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Page {
    /// Entries with an offset above the one asked after, in order, at most as many as asked for.
    pub entries: Vec<Entry>,
    /// Whether the position asked after is still an entry of this history (START always is, unless trimmed off).
    pub known: bool,
    /// Position of the oldest entry kept, and of its predecessor; `None` when nothing is kept.
    pub oldest: Option<(Position, Position)>,
    /// Position of the newest entry; START when nothing is kept.
    pub head: Position,
}

/// How much of a history is kept. An entry goes when it is beyond both `events` and `age`, or beyond `most`.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// At least this many entries stay.
    pub events: u64,
    /// Entries younger than this stay …
    pub age: Duration,
    /// … but never more than this many in all.
    pub most: u64,
}

/// Something to be appended: an entry that has no place yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Random, and this draft's own: appending it again adds nothing.
    pub nonce: u64,
    /// What is to be kept.
    pub payload: Bytes,
}

/// The most drafts that one call takes: a retry finds all of them, because a history is searched for the nonces of its
/// last 32 entries.
pub const DRAFTS: usize = 16;

/// How many of a history's newest entries stay when it is trimmed by request: those that are searched for nonces.
pub const STAY: usize = 32;

/// Who appends, where not everyone may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Under {
    /// The fence that must hold the pair.
    pub fence: Fence,
    /// The last entry that its holder knows to stand: a history that ends before it has lost its tail.
    pub after: Option<Position>,
}

/// What came of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// All of it stands: the last entry's position (without drafts, the newest), and how many nodes that entry is on its
    /// way to.
    At(Position, u64),
    /// Nothing was added: the history has lost what [`Under::after`] names, and ends here.
    Behind(Position),
    /// Nothing was added: the fence does not hold the pair.
    Refused,
    /// Nothing was added: there is no record of the pair, or one that is older than the fence.
    Missing,
}

/// What arrives from the broker, in order, at the one receiver that a back end gives its node.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// Something published.
    Message(Topic, Bytes),
    /// Something appended, with the same position and payload that a read gives.
    Entry(Topic, Entry),
    /// Live deliveries may have been lost before this point (reconnect, overflow): histories should be read again.
    /// All subscriptions are in force again.
    Lost,
    /// The broker, or a part of it, went away. Until `Lost`, nothing arrives from there.
    Down,
}

/// The receiving end of a node's deliveries.
pub type Deliveries = mpsc::Receiver<Delivery>;

/// Carries bytes between nodes and keeps histories.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Queues `payload` for every subscriber of `topic`, this node included; never waits. Payloads of one node
    /// arrive in the order in which they were published. At most once: what is queued while the broker is away may
    /// be lost.
    ///
    /// # Errors
    /// [`BrokerError::Full`] when the bounded queue is full: nothing was queued.
    fn publish(&self, topic: &Topic, payload: Bytes) -> Result<(), BrokerError> {
        self.publish_behind(topic, &[], payload)
    }

    /// The same for a payload that consists of a short head and a body. A long body is not copied on its way out.
    ///
    /// # Errors
    /// [`BrokerError::Full`], as above.
    fn publish_behind(&self, topic: &Topic, head: &[u8], body: Bytes) -> Result<(), BrokerError>;

    /// Whether there are other nodes that may hear what is published; false only where that is certain.
    fn has_others(&self) -> bool;

    /// When this returns, everything published or appended from now on is delivered.
    ///
    /// # Errors
    /// Any [`BrokerError`]; the subscription may or may not be in force.
    async fn subscribe(&self, topic: &Topic) -> Result<(), BrokerError>;

    /// Ends a subscription. A few deliveries may still come.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn unsubscribe(&self, topic: &Topic) -> Result<(), BrokerError>;

    /// Adds drafts (at most [`DRAFTS`]) to the topic's history and delivers them live, all in one atomic step; `under`
    /// a fence, only if that fence holds the topic's pair. A draft that was added before (by a call whose answer was
    /// lost) is not added again, but delivered again. Without drafts it only looks.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`]: they may or may not have been added.
    async fn append(
        &self,
        topic: &Topic,
        under: Option<Under>,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Appended, BrokerError>;

    /// Adds shares to a history that many write, each behind its [`Tally`], and delivers them live, all in one atomic
    /// step. What `writer` has added already, by a call whose answer was lost, is not added again: it has one call
    /// under way at a time. Returns the last one's position. An entry goes when it is older than `keep.age`, or when
    /// those behind it weigh `keep.most`; the newest stays for a day.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`]: they may or may not have been added.
    async fn contribute(
        &self,
        topic: &Topic,
        writer: Option<&Writer>,
        shares: &[Share],
        keep: &Keep,
    ) -> Result<Position, BrokerError>;

    /// What a writer has contributed in all; `None` when it has not for a day.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn contributed(&self, topic: &Topic, writer: &str) -> Result<Option<u64>, BrokerError>;

    /// At most `limit` entries before `before` (the newest there are, without it), newest first.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn latest(&self, topic: &Topic, before: Option<Position>, limit: usize) -> Result<Vec<Entry>, BrokerError>;

    /// At most `limit` entries after `after`, and what else one look at the history tells.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn read(&self, topic: &Topic, after: Position, limit: usize) -> Result<Page, BrokerError>;

    /// At most `limit` entries right behind `after`, for whoever has just read a page whose oldest entry was `oldest`;
    /// `None` if that takes another [`Broker::read`], as it does at the end of a history.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn read_on(
        &self,
        topic: &Topic,
        after: Position,
        oldest: Position,
        limit: usize,
    ) -> Result<Option<Vec<Entry>>, BrokerError>;

    /// Gives up what a history has before an entry, but never any of its newest [`STAY`].
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn trim(&self, topic: &Topic, before: Position) -> Result<(), BrokerError>;

    /// The newest position of each topic's history, in one round trip; START where nothing is kept.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn heads(&self, topics: &[Topic]) -> Result<Vec<Position>, BrokerError>;
}

/// How long the newest entry of a history that many write stays, and what its writers have contributed.
pub const LEFT_ALONE: Duration = Duration::from_secs(24 * 3_600);

/// Both ports of one back end, and the deliveries that come out of it.
pub struct Link {
    /// Live traffic and histories.
    pub broker: Arc<dyn Broker>,
    /// Leased records.
    pub registry: Arc<dyn Registry>,
    /// What arrives.
    pub deliveries: Deliveries,
}
