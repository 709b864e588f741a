//! What a fail-over of the broker brought back: it may take back a release or a leaving that was acknowledged, and then
//! the registry says that this node holds what it has long given up.
//!
//! So for a while after live deliveries were interrupted, a node compares what the registry says it holds with what is
//! here. What is found twice in a row, a beat apart, is no longer on its way: it is given up again.

use std::{collections::HashSet, sync::Arc};

use futures_util::FutureExt as _;
use uuid::Uuid;

use super::{Node, burial::all};
use crate::{
    broker::{BrokerError, Group, Holdings, Member},
    protocol::{PairId, SiblingId},
};

/// At how many beats it is looked for.
pub(super) const SWEEPS: u32 = 4;
/// How much is looked at with one beat.
const PORTION: usize = 4_096;

/// What was found too much at the last beat.
#[derive(Default)]
pub(super) struct Leftovers {
    pairs: HashSet<(PairId, u64)>,
    members: HashSet<(Group, Uuid)>,
}

impl Node {
    /// Gives up what was too much at the last beat, and still is.
    pub(super) async fn sweep(self: &Arc<Self>, before: &mut Leftovers) -> Result<(), BrokerError> {
        let Holdings { pairs, members, .. } = self.registry.holdings(self.id, PORTION).await?;
        let gone = |(pair, nonce): &(PairId, u64)| self.hub.fence(*pair).is_none_or(|here| here.nonce != *nonce);
        let pairs: Vec<_> = pairs.into_iter().filter(gone).collect();
        let members: Vec<_> = members.into_iter().filter(|(group, member)| !self.is_here(group, member)).collect();

        let again = pairs.iter().filter(|found| before.pairs.contains(found));
        all(again.map(|(pair, nonce)| self.bury_socket(self.id, *pair, *nonce).boxed())).await?;
        for (group, member) in &members {
            if before.members.contains(&(group.clone(), member.id)) {
                self.try_to_leave(group, member).await?;
            }
        }
        before.pairs = pairs.into_iter().collect();
        before.members = members.into_iter().map(|(group, member)| (group, member.id)).collect();
        Ok(())
    }

    fn is_here(&self, group: &Group, member: &Member) -> bool {
        match group {
            Group::Siblings(_) => self.siblings.contains(&SiblingId::from_uuid(member.id)),
            Group::Room(room) => self.hub.room(room).is_some_and(|room| room.has(PairId::from_uuid(member.id))),
        }
    }
}
