//! Floor 1: the other nodes, seen through two narrow ports.
//!
//! [`Broker`] carries bytes between nodes and keeps histories; [`Registry`] keeps the records that exactly one node
//! may hold. Neither knows what a frame, a command or an event is. [`memory`] is the embedded back end (one node
//! alone, or many nodes in one test process), [`redis`] the distributed one. [`conformance`] is the contract of
//! both, a function per clause.

pub mod conformance;
pub mod memory;
pub mod redis;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::protocol::{Fence, NodeId, PairId, Position, RoomName, Topic};

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
    /// All of it stands; the last entry's position (without drafts, the newest).
    At(Position),
    /// Nothing was added: the history has lost what [`Under::after`] names, and ends here.
    Behind(Position),
    /// Nothing was added: the fence does not hold the pair.
    Refused,
    /// Nothing was added: there is no record of the pair, or one that is older than the fence.
    Missing,
}

/// What came of a step that only the holder of a fence may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T> {
    /// It was taken, now or by the same call before.
    Taken(T),
    /// It was not: the record is under another fence, in other hands, or ended.
    Refused,
    /// It was not: there is no record (any more).
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
    fn publish(&self, topic: &Topic, payload: Bytes) -> Result<(), BrokerError>;

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

    /// At most `limit` entries after `after`, and what else one look at the history tells.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn read(&self, topic: &Topic, after: Position, limit: usize) -> Result<Page, BrokerError>;

    /// The newest position of each topic's history, in one round trip; START where nothing is kept.
    ///
    /// # Errors
    /// Any [`BrokerError`].
    async fn heads(&self, topics: &[Topic]) -> Result<Vec<Position>, BrokerError>;
}

/// A pair's record: who holds it, and what every node must know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the nodes wrote; opaque here.
    pub facts: Bytes,
    /// The last client socket's fence; epoch 0 before the first.
    pub fence: Fence,
    /// The node that has the live client socket.
    pub holder: Option<NodeId>,
    /// While there is none: the node that ends the pair when it waits too long for one.
    pub keeper: Option<NodeId>,
    /// Whether anything was appended under this fence: what nobody heard of opening needs no closing.
    pub heard: bool,
    /// Whether the pair has ended; the record is kept for a while so that late-comers learn of it.
    pub ended: bool,
}

/// The outcome of [`Registry::claim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The claimer now holds the pair under this fence.
    Won(Fence),
    /// Somebody holds it: who, and under which fence, says the record.
    Held(Record),
    /// The pair has ended.
    Ended,
    /// There is no such pair.
    Missing,
}

/// How a command with a key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It was not begun before: it is now.
    First,
    /// It was begun, and has no reply yet.
    Running,
    /// It was carried out, with this reply.
    Settled(Bytes),
}

/// Something that has members.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Group {
    /// The client sockets in a room; members are pair ids.
    Room(RoomName),
    /// The siblings attached to a pair; members are sibling ids.
    Siblings(PairId),
}

/// One member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id: a pair's or a sibling's text form. Members are listed in the order of their ids.
    pub id: String,
    /// The node that it is on.
    pub node: NodeId,
    /// What that node wrote of it; opaque here.
    pub value: Bytes,
}

/// What a group is, in one look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// What the first member laid down; `None` when the group is empty.
    pub charter: Option<Bytes>,
    /// How many members it has.
    pub members: u64,
}

/// A node as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub node: NodeId,
    /// What it says of itself; opaque here.
    pub value: Bytes,
    /// Whether its lease has run out.
    pub expired: bool,
}

/// How a node's lease stands when it is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// It had not run out.
    Kept,
    /// It had run out, or the node was not known. It is renewed; others may have released what the node held.
    Lapsed,
    /// The node was declared dead, and others are at releasing all that it holds: it is not renewed before they are
    /// done.
    Condemned,
}

/// One time that a node was declared dead. A node that came back and is declared dead again is under another sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sentence(pub u64);

/// Keeps records that one node holds at a time. A node holds what it claimed for as long as its own lease lives, so
/// that an idle pair costs nothing.
///
/// The end of a hold and the events that tell it are one step: exactly one caller takes it, and no crash can come
/// between.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Makes a pair's record, without a holder, to be ended by `keeper` after `linger`; the record itself stays for
    /// `keep` more. False when it exists.
    async fn create(
        &self,
        pair: PairId,
        facts: Bytes,
        keeper: NodeId,
        linger: Duration,
        keep: Duration,
    ) -> Result<bool, BrokerError>;

    /// Takes the pair for `node`'s new client socket, if nobody holds it: the epoch goes up by one. Record and history
    /// do not expire while it is held. Claiming again with the same nonce gives the same answer.
    async fn claim(&self, pair: PairId, node: NodeId, nonce: u64) -> Result<Claim, BrokerError>;

    /// Writes a record that the broker lost, or has only in an older state (of a lower epoch), as held by `node` under
    /// `fence`, and appends the drafts then. Taken also when the record says so already.
    async fn restore(
        &self,
        pair: PairId,
        node: NodeId,
        fence: Fence,
        facts: Bytes,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Step<()>, BrokerError>;

    /// Replaces the facts if `fence` is still the record's. False when it is not: a newer socket took over.
    async fn revise(&self, pair: PairId, fence: Fence, facts: Bytes) -> Result<bool, BrokerError>;

    /// Gives the pair up if `fence` holds it, and appends the drafts (at most [`DRAFTS`]) that tell it, in one step; if
    /// nothing was appended under this fence before, there is nothing to tell. The pair is `keeper`'s to end after `linger`; the record stays for `keep.age` more, and its history as long
    /// again.
    async fn release(
        &self,
        pair: PairId,
        fence: Fence,
        keeper: NodeId,
        linger: Duration,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Step<()>, BrokerError>;

    /// Ends the pair if it is under `fence` and held by `holder`, and appends the drafts (at most [`DRAFTS`]) that tell
    /// it, in one step: then nobody holds it, and it can't be claimed. Record and history stay for `keep.age`.
    async fn end(
        &self,
        pair: PairId,
        fence: Fence,
        holder: Option<NodeId>,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Step<()>, BrokerError>;

    /// Makes `to` the keeper of a pair that waits for a client socket since `fence`, in the place of `from`; returns
    /// for how long it is still to wait. `None` when it does not wait any more, or `from` does not keep it.
    async fn adopt(
        &self,
        pair: PairId,
        fence: Fence,
        [from, to]: [NodeId; 2],
        keep: Duration,
    ) -> Result<Option<Duration>, BrokerError>;

    /// The pair's record.
    async fn look_up(&self, pair: PairId) -> Result<Option<Record>, BrokerError>;

    /// Notes that the pair's command with this key is being carried out. Of many beginners of a key, those with one
    /// and the same `token` are told [`Begun::First`]: a beginner whose answer was lost asks again. The note is kept
    /// for `keep`, unless it is settled.
    async fn begin(&self, pair: PairId, key: &str, token: u64, keep: Duration) -> Result<Begun, BrokerError>;

    /// How a command with this key stands; `None` when none was begun.
    async fn begun(&self, pair: PairId, key: &str) -> Result<Option<Begun>, BrokerError>;

    /// Keeps the reply to a command that was begun with `token`, for `keep`; or forgets the command, so that it can
    /// begin again. A note of another beginner stays as it is.
    async fn settle(
        &self,
        pair: PairId,
        key: &str,
        token: u64,
        reply: Option<Bytes>,
        keep: Duration,
    ) -> Result<(), BrokerError>;

    /// Adds or replaces a member. The charter in force is returned: this caller's if the group was empty.
    async fn join(&self, group: &Group, member: Member, charter: Bytes) -> Result<Bytes, BrokerError>;

    /// Removes a member if it is still this one, on this node and with this value: an older one that leaves late takes
    /// nothing from its successor. With the last one the group and its charter vanish. False when it was not there.
    async fn leave(&self, group: &Group, member: &Member) -> Result<bool, BrokerError>;

    /// Charter and size of a group.
    async fn census(&self, group: &Group) -> Result<Census, BrokerError>;

    /// At most `limit` members whose id comes after `after`, in the order of ids.
    async fn members(&self, group: &Group, after: Option<&str>, limit: usize) -> Result<Vec<Member>, BrokerError>;

    /// Says that `node` lives, for at least `lease` from now.
    async fn beat(&self, node: NodeId, value: Bytes, lease: Duration) -> Result<Beat, BrokerError>;

    /// All nodes, expired ones included.
    async fn nodes(&self) -> Result<Vec<Peer>, BrokerError>;

    /// Declares a node dead if its lease has run out: it can't be renewed until the node is buried. Returns the sentence
    /// under which it is declared dead, now or before.
    async fn condemn(&self, node: NodeId) -> Result<Option<Sentence>, BrokerError>;

    /// A node that stops declares itself dead: whatever it still holds is for the others.
    async fn resign(&self, node: NodeId) -> Result<(), BrokerError>;

    /// What `node` holds, keeps or has in groups, at most `limit` of each.
    async fn holdings(&self, node: NodeId, limit: usize) -> Result<Holdings, BrokerError>;

    /// Forgets a node that is declared dead under this sentence, when all that it held is released: if it comes back,
    /// it begins anew.
    async fn bury(&self, node: NodeId, sentence: Sentence) -> Result<(), BrokerError>;
}

/// What a node is answerable for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Pairs that it claimed and did not release, each with its fence's nonce.
    pub pairs: Vec<(PairId, u64)>,
    /// Pairs that it is the keeper of.
    pub kept: Vec<PairId>,
    /// Groups and its members in them.
    pub members: Vec<(Group, Member)>,
}

/// Both ports of one back end, and the deliveries that come out of it.
pub struct Link {
    /// Live traffic and histories.
    pub broker: Arc<dyn Broker>,
    /// Leased records.
    pub registry: Arc<dyn Registry>,
    /// What arrives.
    pub deliveries: Deliveries,
}
