//! The port of leased records: pairs, groups, rooms' rules, nodes.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use super::{Appended, BrokerError, Draft, Keep};
use crate::protocol::{Fence, NodeId, PairId, Position, RoomName};

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
    /// Its id: a pair's, or a sibling's. Members are listed in the order of their ids.
    pub id: Uuid,
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
    /// What was laid down for the room, whether or not it has members; siblings have no rules.
    pub rule: Option<Rule>,
    /// The newest place in the room's talk; siblings have none.
    pub talk: Position,
    /// Whether changes of the room's members wait to be told ([`Registry::tell_changes`]).
    pub untold: bool,
}

/// In a room of so many members, those who come and go are told of together.
pub const CROWD: u64 = 256;
/// Of how many at most.
pub const MOST_CHANGES: usize = 256;

/// What is told in a room's talk of a member that comes or goes. How many members there are then is known only in that
/// step: it stands between the two parts, as JSON writes a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Random, and this one's own.
    pub nonce: u64,
    /// What is kept before the number.
    pub before: Bytes,
    /// What is kept behind it.
    pub after: Bytes,
}

/// What is told in a room's talk of those who come to a crowd, and of those who leave it: how many members there are
/// then, and the list of those who have come or left, stand between the three parts of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Random, and this one's own.
    pub nonce: u64,
    /// Of those who have come.
    pub joined: [Bytes; 3],
    /// Of those who have left.
    pub left: [Bytes; 3],
}

/// What was laid down for a room, by others than its members. It outlives them, and never expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Random, and this rule's own: whoever replaces it names it, so that nothing is overwritten unseen. Never 0, which
    /// stands for no rule.
    pub version: u64,
    /// What was laid down; opaque here.
    pub value: Bytes,
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
/// between. So it is with members that come and go.
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
    /// do not expire while it is held. Claiming again with the same nonce gives the same answer once it has won; until
    /// then, each attempt has a nonce of its own.
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

    /// Gives the pair up if `fence` holds it, and appends the drafts (at most [`DRAFTS`](super::DRAFTS)) that tell it, in
    /// one step; if nothing was appended under this fence before, there is nothing to tell. The pair is `keeper`'s to end
    /// after `linger`; the record stays for `keep.age` more, and its history as long again.
    async fn release(
        &self,
        pair: PairId,
        fence: Fence,
        keeper: NodeId,
        linger: Duration,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Step<()>, BrokerError>;

    /// Ends the pair if it is under `fence` and held by `holder`, and appends the drafts (at most
    /// [`DRAFTS`](super::DRAFTS)) that tell it, in one step: then nobody holds it, and it can't be claimed. Record and history stay for `keep.age`.
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

    /// Adds drafts to the history of a pair that has not ended, whoever holds it: [`Appended::Refused`] when it has,
    /// [`Appended::Missing`] when there is no record.
    async fn tell(&self, pair: PairId, drafts: &[Draft], keep: &Keep) -> Result<Appended, BrokerError>;

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

    /// Adds a member, unless the group has `capacity` of them already, or replaces one, however many there are. What
    /// the group is then is returned; its charter is this caller's if it was empty. `None` when it is full: then
    /// nothing has changed. If the group is a room, `told` is appended to its talk when a member was added, not when one
    /// was replaced; in a [`CROWD`] it waits for [`Registry::tell_changes`], and so does what changes behind it. While a
    /// room has members, its talk does not expire.
    async fn join(
        &self,
        group: &Group,
        member: Member,
        charter: Bytes,
        capacity: Option<u64>,
        told: Option<(&Counted, &Keep)>,
    ) -> Result<Option<Census>, BrokerError>;

    /// Removes a member if it is still this one, on this node and with this value: an older one that leaves late takes
    /// nothing from its successor. With the last one the group and its charter vanish. If the group is a room, `told` is
    /// appended to its talk, or waits, as by [`Registry::join`]. What the group is then is returned; `None` when the member
    /// was not there: then nothing is told.
    async fn leave(
        &self,
        group: &Group,
        member: &Member,
        told: Option<(&Counted, &Keep)>,
    ) -> Result<Option<Census>, BrokerError>;

    /// Tells in one entry of a room's talk of all that have come to a crowd, or have left it, one after the other: of
    /// [`MOST_CHANGES`] at most. How many changes still wait is returned. A call whose answer was lost may have told; the
    /// next one, which needs another nonce, tells what is behind.
    async fn tell_changes(&self, room: &RoomName, told: &Changes, keep: &Keep) -> Result<u64, BrokerError>;

    /// Lays down a rule for a room, or takes it back, if the one in force is `version` (0: there is none). If the room
    /// has members, its charter is replaced by `charter`, where one is given, in the same step. False when another
    /// rule is in force, and nothing has changed. What is so already is taken as done: a caller whose answer was lost
    /// asks again.
    async fn lay_down(
        &self,
        room: &RoomName,
        version: u64,
        rule: Option<Rule>,
        charter: Option<Bytes>,
    ) -> Result<bool, BrokerError>;

    /// At most `limit` rooms with rules whose name comes after `after`, in the order of names (of their bytes). A page
    /// that is shorter is the last. What is laid down or taken back meanwhile may be listed or not.
    async fn rules(&self, after: Option<&str>, limit: usize) -> Result<Vec<(RoomName, Rule)>, BrokerError>;

    /// What a group is.
    async fn census(&self, group: &Group) -> Result<Census, BrokerError>;

    /// At most `limit` members whose id comes after `after`, in the order of ids.
    async fn members(&self, group: &Group, after: Option<Uuid>, limit: usize) -> Result<Vec<Member>, BrokerError>;

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
