//! What can be published to and listened to.

use super::{NodeId, PairId, RoomName};

/// A place where nodes reach each other through the broker. Those of pairs and of the cluster, and what is told in
/// rooms, have a history, too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// The events of one pair, kept and live.
    Pair(PairId),
    /// The frames of one room, live only.
    Room(RoomName),
    /// The events of one room, which all its members' siblings may hear, kept and live: its talk.
    Talk(RoomName),
    /// Commands and replies for one node, live only.
    Node(NodeId),
    /// What every node must know, kept and live.
    Cluster,
}

impl From<PairId> for Topic {
    fn from(pair: PairId) -> Self {
        Self::Pair(pair)
    }
}
