//! The node's pulse: its lease, what it compares with the registry because of it, and the look at histories that finds
//! a lost last event.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{ClientMail, Node, ReplyTo, burial::all, sweep::Leftovers};
use crate::{
    broker::{Beat, BrokerError},
    hub::Heard,
    protocol::{Failure, Fence, PairId},
};

/// A lost last event is found within this.
const LOOK: Duration = Duration::from_secs(2);
/// How many histories are looked at in one go.
const BATCH: usize = 256;
/// How much later than this one another node may find its way back to a broker that failed over.
const STRAGGLING: Duration = Duration::from_secs(6);
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

impl Lease {
    /// What is won from here on is given up again.
    pub(super) fn give_up(&self) {
        self.until.store(0, Relaxed);
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
    leftovers: Leftovers,
}

impl Steady {
    fn beat(&mut self, sent: Instant, kept: bool, lease: Duration) {
        if !kept || sent.elapsed() > lease / 4 {
            self.0 = None;
        }
        self.0.get_or_insert_with(Instant::now);
    }

    fn for_a(&self, lease: Duration) -> bool {
        self.0.is_some_and(|since| since.elapsed() >= lease.max(STRAGGLING))
    }
}

impl Node {
    /// Whether this node's lease had not run out, when it was last renewed and until now.
    pub(super) fn leased(&self) -> bool {
        (self.lease.begin.elapsed().as_millis() as u64) < self.lease.until.load(Acquire)
    }

    /// Whether client sockets here may still carry out commands. Without a lease their pairs may be somebody else's by
    /// now: a process that was stopped finds mail for what it was. Only while the broker is silent, those here go on
    /// among themselves.
    #[must_use]
    pub fn may_obey(&self, reply: &ReplyTo) -> bool {
        self.leased() || matches!(reply, ReplyTo::Here(_)) && self.broker_is_silent()
    }

    /// Whether this client socket still serves its pair. Asked after the lease: by the time that a lost one is renewed,
    /// the sockets that were lost with it serve nobody, whether their actors know it yet or not.
    #[must_use]
    pub fn serves(&self, (pair, fence): (PairId, Fence)) -> bool {
        self.hub.fence(pair) == Some(fence)
    }

    /// The term of the lease; `None` while it is lost.
    pub(super) fn term(&self) -> Option<u64> {
        self.leased().then(|| self.lease.term.load(Relaxed))
    }

    /// The lease holds for its time since the beat was sent.
    fn renewed(&self, sent: Instant) {
        let until = sent + self.settings.lease - self.lease.begin;
        self.lease.until.store(until.as_millis() as u64, Release);
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

    async fn one_beat(self: &Arc<Self>, pulse: &mut Pulse) {
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
                if self.sweeps.load(Relaxed) > 0 && self.sweep(&mut pulse.leftovers).await.is_ok() {
                    self.sweeps.fetch_sub(1, Relaxed);
                }
                if pulse.steady.for_a(lease) && !self.broker_is_healing() {
                    self.bury_the_dead();
                }
            }
            // Lapsed; or that was said and not heard.
            Beat::Kept | Beat::Lapsed => {
                pulse.condemned = None;
                self.lease.term.fetch_add(1, Relaxed);
                self.broker_shaken();
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
                for (pair, fence) in self.hub.clients() {
                    self.hub.unregister(pair, fence);
                }
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
            self.look_at_chronicle().await;
            for topics in self.hub.watched().chunks(BATCH) {
                let Ok(heads) = self.broker.heads(topics).await else { break };
                for (topic, head) in topics.iter().zip(heads) {
                    self.hub.tell(topic, &Heard::Head(head));
                }
            }
        }
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
        match self.registry.look_up(pair).await? {
            Some(record) if record.fence == fence && record.holder == Some(self.id) => {}
            // From here on it says and does nothing; its actor learns of it by its mailbox, which closes.
            Some(record) if record.fence.epoch >= fence.epoch || record.ended => self.hub.unregister(pair, fence),
            // A broker that lost its records, or the last of its writes, has given the pair to nobody else: the pipe
            // stays open.
            _ => self.leave_mail(pair, ClientMail::Restore),
        }
        Ok(())
    }

    pub(super) fn leave_mail(&self, pair: PairId, mail: ClientMail) {
        if self.hub.send(pair, mail).is_err() {
            tracing::debug!(%pair, "it is gone already, or has too much mail");
        }
    }
}
