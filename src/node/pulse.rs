//! The node's pulse: its lease, the burial of nodes that lost theirs, and the look at histories that finds a lost
//! last event.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _, future::BoxFuture, stream};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{ClientMail, Facts, Node, parting::node_lost};
use crate::{
    broker::{Beat, BrokerError, Group, Member, Record, Step},
    hub::Heard,
    protocol::{Failure, Fence, NodeId, PairId, Topic},
};

/// A lost last event is found within this.
const LOOK: Duration = Duration::from_secs(2);
/// How many records of a dead node are looked at in one go.
const BATCH: usize = 256;
/// How many of them are worked on at a time.
const AT_ONCE: usize = 32;
/// How many groups that could not be left are remembered; beyond, they are left when this node is buried.
const UNLEFT: usize = 65_536;
/// How many client sockets are compared with the registry at each beat.
const AUDIT: usize = 64;

/// Until when this node may be sure that nobody takes it for dead.
pub(super) struct Lease {
    begin: Instant,
    /// In milliseconds since `begin`.
    until: AtomicU64,
    /// Goes up whenever it was lost: what was asked for in one term and answered in another may be buried already.
    term: AtomicU64,
}

impl Default for Lease {
    fn default() -> Self {
        Self { begin: Instant::now(), until: AtomicU64::new(0), term: AtomicU64::new(0) }
    }
}

/// Since when the broker has answered every beat at once. Only who has seen that for a whole lease can tell a dead node
/// from a broker that was away: after an outage, all leases have run out.
#[derive(Default)]
struct Steady(Option<Instant>);

/// What a node remembers from beat to beat.
#[derive(Default)]
struct Pulse {
    steady: Steady,
    /// Since when it is declared dead.
    condemned: Option<Instant>,
    /// The client sockets that are still to be looked at in this turn.
    audited: VecDeque<(PairId, Fence)>,
}

impl Steady {
    fn beat(&mut self, sent: Instant, kept: bool, lease: Duration) {
        if !kept || sent.elapsed() > lease / 4 {
            self.0 = None;
        }
        self.0.get_or_insert_with(Instant::now);
    }

    fn for_a(&self, lease: Duration) -> bool {
        self.0.is_some_and(|since| since.elapsed() >= lease)
    }
}

/// Does all of it, not too much at a time.
async fn all<'a>(work: impl Iterator<Item = BoxFuture<'a, Result<(), BrokerError>>>) -> Result<(), BrokerError> {
    // Gathered first: the work of a portion is small, and its futures are told apart from where they come from.
    let work: Vec<_> = work.collect();
    stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await
}

impl Node {
    /// Whether this node's lease had not run out, when it was last renewed and until now.
    pub(super) fn leased(&self) -> bool {
        (self.lease.begin.elapsed().as_millis() as u64) < self.lease.until.load(Relaxed)
    }

    /// The term of the lease; `None` while it is lost.
    pub(super) fn term(&self) -> Option<u64> {
        self.leased().then(|| self.lease.term.load(Relaxed))
    }

    /// The lease holds for its time since the beat was sent.
    fn renewed(&self, sent: Instant) {
        let until = sent + self.settings.lease - self.lease.begin;
        self.lease.until.store(until.as_millis() as u64, Relaxed);
    }

    /// The node becomes known.
    pub(super) async fn first_beat(&self) -> Result<(), BrokerError> {
        let sent = Instant::now();
        self.beat().await?;
        self.renewed(sent);
        Ok(())
    }

    /// Renews the node's lease: one command, however many pairs it has.
    async fn beat(&self) -> Result<Beat, BrokerError> {
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

    /// Renews the lease, looks after dead nodes, and leaves the cluster at the end of a drain.
    pub(super) async fn keep_pulse(self: Arc<Self>) {
        let mut tick = interval(self.settings.lease / 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pulse = Pulse::default();
        loop {
            tokio::select! {
                _ = tick.tick() => self.one_beat(&mut pulse).await,
                () = self.retiring.cancelled() => break,
                () = self.stopped.cancelled() => return,
            }
        }
        // Here, because no beat may follow it.
        self.sign_off().await;
        self.retired.cancel();
    }

    async fn one_beat(&self, pulse: &mut Pulse) {
        let (sent, lease) = (Instant::now(), self.settings.lease);
        let beat = match self.beat().await {
            Ok(beat) => beat,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the lease was not renewed");
                self.broker_answers(false);
                pulse.steady = Steady::default();
                return;
            }
        };
        self.broker_answers(true);
        pulse.steady.beat(sent, beat == Beat::Kept, lease);
        match beat {
            Beat::Kept if self.leased() => {
                self.renewed(sent);
                self.leave_what_was_not_left().await;
                self.audit(&mut pulse.audited).await;
                if pulse.steady.for_a(lease) {
                    self.bury_the_dead().await;
                }
            }
            // Lapsed; or that was said and not heard.
            Beat::Kept | Beat::Lapsed => {
                pulse.condemned = None;
                self.lease.term.fetch_add(1, Relaxed);
                tracing::warn!("this node's lease had run out: checking what it still holds");
                if self.check_all().await {
                    self.renewed(sent);
                }
            }
            Beat::Condemned => {
                let since = *pulse.condemned.get_or_insert_with(|| {
                    tracing::warn!("this node was taken for dead: its client sockets are closed");
                    Instant::now()
                });
                self.disown_all();
                // Others are at it; unless there are none.
                if since.elapsed() >= lease
                    && let Err(error) = self.bury(self.id).await
                {
                    tracing::debug!(error = &error as &dyn std::error::Error, "this node is not buried yet");
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

    /// Releases all that a dead node held. Others may be at the same, be done before, and the node may be back by then:
    /// so what was listed counts only if the node was under the same sentence before and after, and only under the
    /// fences that were listed.
    async fn bury(&self, dead: NodeId) -> Result<(), BrokerError> {
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
            all(held.members.iter().map(|(group, member)| self.registry.leave(group, member).map_ok(drop).boxed()))
                .await?;
            all(held.pairs.iter().map(|(pair, nonce)| self.bury_socket(dead, *pair, *nonce).boxed())).await?;
            all(held.kept.iter().map(|pair| self.adopt(dead, *pair).boxed())).await?;
        }
        tracing::info!(node = %dead, "a dead node is buried");
        self.registry.bury(dead, sentence).await
    }

    /// Releases a pair that a dead node held, and tells how its client socket ended.
    async fn bury_socket(&self, dead: NodeId, pair: PairId, nonce: u64) -> Result<(), BrokerError> {
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

    /// This node may have been taken for dead: whatever others released meanwhile is not its own any more. True when
    /// all was looked at.
    async fn check_all(&self) -> bool {
        self.hub.tell_all(&Heard::Lost);
        let clients = self.hub.clients();
        all(clients.iter().map(|(pair, fence)| self.check(*pair, *fence).boxed())).await.is_ok()
    }

    /// Looks at a few client sockets at each beat, in turn: one that lost its pair without being told would serve for
    /// ever.
    async fn audit(&self, audited: &mut VecDeque<(PairId, Fence)>) {
        if audited.is_empty() {
            audited.extend(self.hub.clients());
        }
        let portion: Vec<_> = audited.drain(..audited.len().min(AUDIT)).collect();
        drop(all(portion.iter().map(|(pair, fence)| self.check(*pair, *fence).boxed())).await);
    }

    async fn check(&self, pair: PairId, fence: Fence) -> Result<(), BrokerError> {
        let mail = match self.registry.look_up(pair).await? {
            // A broker that lost its records, or the last of its writes, has given the pair to nobody else: the pipe
            // stays open.
            None => ClientMail::Restore,
            Some(record) if record.fence.epoch < fence.epoch && !record.ended => ClientMail::Restore,
            Some(record) if record.fence == fence && record.holder == Some(self.id) => return Ok(()),
            Some(_) => ClientMail::Disowned,
        };
        self.leave_mail(pair, mail);
        Ok(())
    }

    fn disown_all(&self) {
        for (pair, _) in self.hub.clients() {
            self.leave_mail(pair, ClientMail::Disowned);
        }
    }

    pub(super) fn leave_mail(&self, pair: PairId, mail: ClientMail) {
        if self.hub.send(pair, mail).is_err() {
            tracing::debug!(%pair, "it is gone already, or has too much mail");
        }
    }

    /// Leaves a group; what can't be left now, is with a later beat.
    pub(super) async fn leave(&self, group: Group, member: Member) {
        if let Err(error) = self.registry.leave(&group, &member).await {
            tracing::debug!(?group, id = member.id, error = &error as &dyn std::error::Error, "not left yet");
            let mut unleft = self.unleft.lock();
            if unleft.len() < UNLEFT {
                unleft.push((group, member));
            }
        }
    }

    async fn leave_what_was_not_left(&self) {
        let unleft = std::mem::take(&mut *self.unleft.lock());
        for (group, member) in unleft {
            self.leave(group, member).await;
        }
    }

    /// Leaves the cluster in good order: what it still keeps is for the others at once, and when there is nothing, they
    /// need not bury it.
    async fn sign_off(&self) {
        // What is won from here on is given up again.
        self.lease.until.store(0, Relaxed);
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
