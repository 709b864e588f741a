//! The node's pulse: its lease, the burial of nodes that lost theirs, and the look at histories that finds a lost
//! last event.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{ClientMail, Facts, Node, ReplyTo};
use crate::{
    broker::{BrokerError, Group},
    hub::Heard,
    protocol::{EventKind, Failure, Fence, NodeId, Topic},
};

/// A lost last event is found within this.
const LOOK: Duration = Duration::from_secs(2);
/// After its lease had run out, a node checks what it holds at this many beats: others may still be at releasing it.
const CHECKS: u32 = 3;
/// How many records of a dead node are released in one go.
const BATCH: usize = 256;

impl Node {
    /// Renews the node's lease: one command, however many pairs it has.
    pub(super) async fn beat(&self) -> Result<bool, BrokerError> {
        self.registry.beat(self.id, self.about.clone(), self.settings.lease).await
    }

    /// What a node says of itself to the cluster.
    pub(super) fn about() -> bytes::Bytes {
        let said = json!({"started_at": super::now_text(), "version": env!("CARGO_PKG_VERSION")});
        rmp_serde::to_vec_named(&said).unwrap_or_default().into()
    }

    /// The cluster's live nodes.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn live_nodes(&self) -> Result<Vec<Value>, Failure> {
        let peers = self.registry.nodes().await?;
        let live = peers.into_iter().filter(|peer| !peer.expired).map(|peer| {
            let said: Value = rmp_serde::from_slice(&peer.value).unwrap_or_default();
            json!({"node": peer.node, "started_at": said["started_at"], "version": said["version"]})
        });
        Ok(live.collect())
    }

    pub(super) async fn keep_pulse(self: Arc<Self>) {
        let mut tick = interval(self.settings.lease / 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut checks = 0;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.stopped.cancelled() => return,
            }
            match self.beat().await {
                Ok(kept) => {
                    self.broker_answers(true);
                    if !kept {
                        tracing::warn!("this node's lease had run out: checking what it still holds");
                        checks = CHECKS;
                    }
                    if checks > 0 {
                        checks -= 1;
                        self.check_all().await;
                    }
                    self.bury_the_dead().await;
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "the lease was not renewed");
                    self.broker_answers(false);
                }
            }
        }
    }

    /// Listeners whose last event was lost on the way would not notice by themselves.
    pub(super) async fn watch_heads(self: Arc<Self>) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.stopped.cancelled() => return,
            }
            for pairs in self.hub.watched().chunks(BATCH) {
                let topics: Vec<_> = pairs.iter().copied().map(Topic::Pair).collect();
                let Ok(heads) = self.broker.heads(&topics).await else { break };
                for (pair, head) in pairs.iter().zip(heads) {
                    self.hub.tell(*pair, &Heard::Head(head));
                }
            }
        }
    }

    /// Releases what dead nodes held. Every survivor tries; the registry lets one succeed for each pair.
    async fn bury_the_dead(&self) {
        let Ok(nodes) = self.registry.nodes().await else { return };
        for dead in nodes.into_iter().filter(|peer| peer.expired && peer.node != self.id) {
            if let Err(error) = self.bury(dead.node).await {
                tracing::warn!(node = %dead.node, error = &error as &dyn std::error::Error, "a dead node is not buried yet");
            }
        }
    }

    async fn bury(&self, dead: NodeId) -> Result<(), BrokerError> {
        loop {
            let held = self.registry.holdings(dead, BATCH).await?;
            if held.pairs.is_empty() && held.members.is_empty() {
                break;
            }
            for (group, id) in held.members {
                self.registry.leave(&group, &id, dead).await?;
            }
            for pair in held.pairs {
                let Some(record) = self.registry.look_up(pair).await? else { continue };
                let linger = Facts::read(&record.facts).map_or(self.settings.linger, |facts| facts.linger());
                let keep = self.settings.keep.age;
                if record.holder != Some(dead)
                    || !self.registry.release(pair, record.fence, linger + super::linger::GRACE, keep).await?
                {
                    continue;
                }
                self.lingering.add(pair, record.fence, linger);
                if !self.closed_is_mine_to_tell(pair, record.fence).await {
                    continue;
                }
                let data = node_lost(record.fence);
                if let Err(failure) = self.raise(pair, EventKind::ClientClosed, data, None).await {
                    tracing::warn!(%pair, %failure, "the loss of a client socket could not be told");
                }
            }
        }
        tracing::info!(node = %dead, "a dead node is buried");
        self.registry.bury(dead).await
    }

    /// This node may have been taken for dead: whatever others released meanwhile is not its own any more.
    async fn check_all(&self) {
        for (pair, fence) in self.hub.clients() {
            match self.registry.look_up(pair).await {
                // A broker that lost its records has given the pair to nobody else: the pipe stays open.
                Ok(None) => drop(self.hub.send(pair, ClientMail::Restore)),
                Ok(Some(record)) if record.fence == fence && record.holder == Some(self.id) => {}
                Ok(Some(record)) => {
                    // Released, or taken over: in both cases what comes after this socket is another.
                    let to = Fence { epoch: record.fence.epoch.max(fence.epoch + 1), nonce: record.fence.nonce };
                    let (reply, _) = tokio::sync::oneshot::channel();
                    let mail = ClientMail::Yield { to, reply: ReplyTo::Here(reply) };
                    if self.hub.send(pair, mail).is_err() {
                        tracing::debug!(%pair, "it is gone already");
                    }
                }
                Err(_) => return,
            }
        }
        for pair in self.hub.watched() {
            self.hub.tell(pair, &Heard::Lost);
        }
    }

    /// Leaves a group. What could not be left goes when this node is buried.
    pub(super) async fn leave(&self, group: &Group, id: &str) {
        if let Err(error) = self.registry.leave(group, id, self.id).await {
            tracing::debug!(?group, id, error = &error as &dyn std::error::Error, "not left");
        }
    }

    /// Leaves the cluster in good order: nobody needs to bury this node.
    pub(super) async fn sign_off(&self) {
        let held = self.registry.holdings(self.id, 1).await;
        if held.is_ok_and(|held| held.pairs.is_empty() && held.members.is_empty()) {
            drop(self.registry.bury(self.id).await);
        }
    }
}

/// What is told of a client socket whose node can't tell it.
pub(super) fn node_lost(fence: Fence) -> Value {
    json!({
        "epoch": fence.epoch, "code": 1006, "reason": "the node was lost", "clean": false, "by": "node_lost",
        "frames_in": null, "frames_out": null, "bytes_in": null, "bytes_out": null, "seconds": null,
    })
}
