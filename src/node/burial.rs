//! Dead nodes: what they held is released, what they kept is adopted, and they are forgotten. And this node's own
//! leaving, which is the same, done by itself.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use futures_util::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _, future::BoxFuture, stream};

use super::{Facts, Node, parting::node_lost, talk::counted};
use crate::{
    broker::{BrokerError, Group, Member, Record, Step},
    protocol::{EventKind, NodeId, PairId, Position},
};

/// How many records of a dead node are looked at in one go.
const BATCH: usize = 256;
/// How many of them are worked on at a time.
const AT_ONCE: usize = 32;
/// How many groups that could not be left are remembered; beyond, they are left when this node is buried.
const UNLEFT: usize = 65_536;

/// Does all of it, not too much at a time.
pub(super) async fn all<'a>(
    work: impl Iterator<Item = BoxFuture<'a, Result<(), BrokerError>>>,
) -> Result<(), BrokerError> {
    // Gathered first: the work of a portion is small, and its futures are told apart from where they come from.
    let work: Vec<_> = work.collect();
    stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await
}

impl Node {
    /// Releases what dead nodes held, beside everything else: that may take longer than a beat. Every survivor tries;
    /// the registry lets one succeed for each pair.
    pub(super) fn bury_the_dead(self: &Arc<Self>) {
        if self.burying.swap(true, Relaxed) {
            return;
        }
        let node = Arc::clone(self);
        self.spawn("burial", async move {
            node.stopped.run_until_cancelled(node.bury_all()).await;
            node.burying.store(false, Relaxed);
        });
    }

    async fn bury_all(self: &Arc<Self>) {
        let Ok(nodes) = self.registry.nodes().await else { return };
        for dead in nodes.into_iter().filter(|peer| peer.expired && peer.node != self.id) {
            // A new primary may have lost beats that the old one took, and others may still be on their way to it.
            if self.broker_is_healing() {
                return;
            }
            if let Err(error) = self.bury(dead.node).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(node = %dead.node, error, "a dead node is not buried yet");
            }
        }
    }

    /// Releases all that a dead node held. Others may be at the same, be done before, and the node may be back by then:
    /// so what was listed counts only if the node was under the same sentence before and after, and only under the
    /// fences that were listed.
    pub(super) async fn bury(self: &Arc<Self>, dead: NodeId) -> Result<(), BrokerError> {
        let Some(sentence) = self.registry.condemn(dead).await? else { return Ok(()) };
        loop {
            let mut held = self.registry.holdings(dead, BATCH).await?;
            if self.registry.condemn(dead).await? != Some(sentence) {
                return Ok(());
            }
            if dead == self.id {
                held.kept.clear();
            }
            if held.pairs.is_empty() && held.members.is_empty() && held.kept.is_empty() {
                break;
            }
            all(held.members.iter().map(|(group, member)| self.try_to_leave(group, member).map_ok(drop).boxed()))
                .await?;
            all(held.pairs.iter().map(|(pair, nonce)| self.bury_socket(dead, *pair, *nonce).boxed())).await?;
            all(held.kept.iter().map(|pair| self.adopt(dead, *pair).boxed())).await?;
        }
        tracing::info!(node = %dead, "a dead node is buried");
        self.registry.bury(dead, sentence).await
    }

    /// Releases a pair that a dead node held, and tells how its client socket ended.
    pub(super) async fn bury_socket(&self, dead: NodeId, pair: PairId, nonce: u64) -> Result<(), BrokerError> {
        let record = self.registry.look_up(pair).await?;
        let Some(record) = record.filter(|r| r.holder == Some(dead) && r.fence.nonce == nonce) else {
            return Ok(());
        };
        self.take_for_lost(pair, &record).await
    }

    /// Releases a pair from a client socket whose node can't, and tells how it ended.
    pub(super) async fn take_for_lost(&self, pair: PairId, record: &Record) -> Result<(), BrokerError> {
        let linger = Facts::read(&record.facts).map_or(self.settings.linger, |facts| facts.linger());
        let last = [node_lost(record.fence)];
        let keep = &self.settings.keep;
        if self.registry.release(pair, record.fence, self.id, linger, &last, keep).await? == Step::Taken(()) {
            self.lingering.add(pair, record.fence, linger);
        }
        Ok(())
    }

    /// Takes over a pair that waits for a client socket.
    async fn adopt(&self, dead: NodeId, pair: PairId) -> Result<(), BrokerError> {
        let Some(record) = self.registry.look_up(pair).await? else { return Ok(()) };
        let keep = self.settings.keep.age;
        if let Some(left) = self.registry.adopt(pair, record.fence, [dead, self.id], keep).await? {
            self.lingering.add(pair, record.fence, left);
        }
        Ok(())
    }

    /// Leaves a group; that a room is left is told by the same step, by whoever takes it.
    pub(super) async fn try_to_leave(
        self: &Arc<Self>,
        group: &Group,
        member: &Member,
    ) -> Result<Option<Position>, BrokerError> {
        let told = match group {
            Group::Room(_) => counted(EventKind::PeerLeft, member),
            Group::Siblings(_) => None,
        };
        let told = told.as_ref().map(|told| (told, &self.settings.keep));
        let census = self.registry.leave(group, member, told).await?;
        if let (Group::Room(room), Some(census)) = (group, &census) {
            self.tell_of_crowd(room, census);
        }
        Ok(census.map(|census| census.talk))
    }

    /// Leaves a group; what can't be left now, is with a later beat. The place in the talk of a room is returned, if the
    /// member was there and it is known.
    pub(super) async fn leave(self: &Arc<Self>, group: Group, member: Member) -> Option<Position> {
        let left = self.try_to_leave(&group, &member).await;
        if let Err(error) = &left {
            tracing::debug!(?group, id = %member.id, error = error as &dyn std::error::Error, "not left yet");
            let mut unleft = self.unleft.lock();
            if unleft.len() < UNLEFT {
                unleft.push((group, member));
            }
        }
        left.ok().flatten()
    }

    pub(super) async fn leave_what_was_not_left(self: &Arc<Self>) {
        let unleft = std::mem::take(&mut *self.unleft.lock());
        for (group, member) in unleft {
            self.leave(group, member).await;
        }
    }

    /// Leaves the cluster in good order: what it still keeps is for the others at once, and when there is nothing, they
    /// need not bury it.
    pub(super) async fn sign_off(self: &Arc<Self>) {
        self.lease.give_up();
        let signed_off = async {
            self.registry.resign(self.id).await?;
            if self.registry.holdings(self.id, 1).await?.kept.is_empty() {
                self.bury(self.id).await?;
            }
            Ok::<(), BrokerError>(())
        };
        if let Err(error) = signed_off.await {
            tracing::debug!(error = &error as &dyn std::error::Error, "not signed off: the lease will run out");
        }
    }
}
