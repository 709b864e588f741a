//! Floor 2: where hub and broker meet.
//!
//! One function for each thing that happens: [`Node::publish`] a frame, [`Node::ask`] a client's actor something,
//! [`Node::reply`], tell events in a [`Story`], listen to a pair through a [`Feed`], and [`Node::drain`]. `inbound` is
//! the one loop that reads what other nodes send. What is local and what is remote enters by the same door.

mod ask;
mod asked;
mod burial;
mod chronicle;
mod clock;
mod crossing;
mod detached;
mod drain;
mod endings;
mod facts;
mod feed;
mod follow;
mod inbound;
mod interest;
mod linger;
mod once;
mod owners;
mod pairs;
mod parked;
mod parting;
mod pass;
mod past;
mod publish;
mod pulse;
pub mod replay;
mod revoked;
mod rooms;
mod signals;
mod story;
mod sweep;
mod take;
mod talk;
mod trace;

use std::{
    num::NonZeroU32,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize},
    },
    time::Duration,
};

use dashmap::DashMap;
use futures_util::FutureExt as _;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use ask::Line;
pub use clock::{now, now_seconds, now_text, pause, time_text};
pub use detached::Noted;
pub use drain::DrainPlan;
pub use endings::ended_because;
pub use facts::{Facts, Found, NewPair};
pub use feed::{Feed, FeedItem};
pub use follow::{Followed, Follower};
pub use owners::may_not_publish;
pub use pairs::{Opened, Unserved};
pub use parked::Parked;
pub use parting::{Parted, Parting};
pub use pass::{Pass, Term};
pub use past::{Following, Past, Reach, Said, Start, Wish};
pub use rooms::{Entrant, Entry, RoomDefaults, RoomState, Ruling};
pub use story::{Story, Told};
pub use trace::{Anchor, Backlog, Resumption, Standing, Stop, Trace};

use crate::{
    broker::{Broker, BrokerError, Group, Keep, Link, Member, Registry},
    hub::Hub,
    protocol::{
        Cause, Command, Envelope, Failure, Fault, Fence, Mail, NodeId, PairId, Reply, RoomName, Settings, SiblingId,
        TicketKeys, Topic, Violations,
    },
};

/// How a node behaves. Every default stands in `config`, beside its reason.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// How long the cluster waits for a silent node before it is taken for dead.
    pub lease: Duration,
    /// How long an asker waits for a reply.
    pub command_timeout: Duration,
    /// How long a command's key is remembered.
    pub key_memory: Duration,
    /// How much of a pair's history is kept.
    pub keep: Keep,
    /// How long a pair without a client socket lives, unless it says so itself.
    pub linger: Duration,
    /// The longest that it may say.
    pub longest_linger: Duration,
    /// The settings that a pipe starts with.
    pub pipe: Settings,
    /// The largest frame that a client may send, in bytes.
    pub max_message_bytes: usize,
    /// What happens to a client that sends more, or another kind.
    pub violations: Violations,
    /// What holds in rooms that no account has specified.
    pub rooms: RoomDefaults,
    /// How many commands a sibling may send each second; one that sends more is read more slowly.
    pub commands_per_second: Option<NonZeroU32>,
    /// How long a socket may leave a ping unanswered.
    pub pong: Duration,
    /// How long a drain may take.
    pub drain: Duration,
    /// How long a draining node still answers at least, so that load balancers see it unready before it is gone.
    pub farewell: Duration,
    /// What signs and verifies tickets.
    pub ticket_keys: TicketKeys,
    /// How long a ticket lives, unless its maker says so.
    pub ticket_ttl: Duration,
}

/// Mail for the actor of a client socket.
#[derive(Debug)]
pub enum ClientMail {
    /// Do this.
    Command {
        /// What.
        command: Command,
        /// Who wanted it.
        cause: Cause,
        /// Where the reply goes.
        reply: ReplyTo,
    },
    /// Another client socket wants the place of this one.
    Yield {
        /// This one's fence.
        held: Fence,
        /// Told when this one has given the pair up.
        reply: ReplyTo,
    },
    /// A room is this by now.
    RoomChanged {
        /// What.
        state: RoomState,
        /// Who wanted it.
        cause: Option<Cause>,
    },
    /// A room is closed.
    RoomClosed {
        /// Which.
        room: RoomName,
        /// A short phrase.
        reason: String,
        /// Who wanted it.
        cause: Option<Cause>,
    },
    /// The broker lost what it knew of this client socket.
    Restore,
    /// The broker may have lost the end of the pair's history.
    LookAgain,
    /// Frames of a room with a history are missing that this node should have handed out.
    Missed {
        /// Which room.
        room: RoomName,
        /// How many, where that can be told.
        lost: Option<u64>,
        /// Where it goes on.
        from: Reach,
    },
}

/// Where a reply goes.
#[derive(Debug)]
pub enum ReplyTo {
    /// To somebody on this node.
    Here(oneshot::Sender<Reply>),
    /// To another node, under the number of its ask.
    Node(NodeId, u64),
    /// To one of these, after it has been kept under the command's key.
    Keyed(Box<once::Keyed>),
}

/// One gateway process.
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Who is here.
    pub hub: Hub<ClientMail>,
    /// How it behaves.
    pub settings: NodeSettings,
    /// Everything that runs; a drain waits for all of it.
    pub tasks: TaskTracker,
    /// The actors of sockets, which end first in a drain.
    pub sockets: TaskTracker,
    /// Cancelled when the node begins to stop.
    pub draining: CancellationToken,
    /// What siblings are told of the drain; set before it begins.
    drain_notice: OnceLock<Value>,
    /// Cancelled when every socket is gone and the last loops may end.
    pub(crate) stopped: CancellationToken,
    /// Cancelled when the node is to leave the cluster, and when it has.
    retiring: CancellationToken,
    retired: CancellationToken,
    /// What it says of itself, in the registry.
    about: bytes::Bytes,
    broker: Arc<dyn Broker>,
    registry: Arc<dyn Registry>,
    interest: interest::Interest,
    pending: DashMap<u64, oneshot::Sender<Reply>>,
    numbers: AtomicU64,
    broker_state: parking_lot::Mutex<inbound::BrokerState>,
    lingering: linger::Lingering,
    /// Outboxes that wait for their pairs' next sockets.
    parked: DashMap<PairId, Parked>,
    /// Outboxes that are on their way to another node, or here.
    crossings: crossing::Crossings,
    /// The rooms whose histories are followed for members here.
    followings: past::Followings,
    /// Frames and marks that the full queue to the broker did not take.
    unpublished: AtomicU64,
    /// How often it was heard that rooms changed.
    rules_heard: AtomicU64,
    /// Commands of other nodes that may come again.
    asked: asked::Asked<(NodeId, u64)>,
    /// The same for those that may wait long before they are carried out.
    asked_to_wait: asked::Asked<(NodeId, u64)>,
    /// Commands with keys that were carried out here.
    keyed: asked::Asked<once::Name>,
    /// The siblings that are here.
    siblings: dashmap::DashSet<SiblingId>,
    /// What a drain waits for: events of sockets that are gone, and sockets that are just opening.
    parting: AtomicUsize,
    lease: pulse::Lease,
    /// At how many more beats it is looked for what a fail-over brought back.
    sweeps: AtomicU32,
    /// Rooms that are about to be told who has come and gone.
    crowds: dashmap::DashSet<RoomName>,
    /// Whether a burial is under way.
    burying: AtomicBool,
    /// Groups that could not be left yet.
    unleft: parking_lot::Mutex<Vec<(Group, Member)>>,
    /// What every node must know: which tickets are revoked.
    chronicle: chronicle::Chronicle,
    /// Signals of which it is being counted to how many they are told.
    tallies: signals::Tallies,
}

impl Node {
    /// Starts a node on a broker: it is known to the cluster when this returns, and its loops run on `tasks`.
    ///
    /// # Errors
    /// When the broker does not take the first lease or subscription.
    pub async fn start(
        id: NodeId,
        settings: NodeSettings,
        link: Link,
        tasks: TaskTracker,
        stopped: CancellationToken,
    ) -> Result<Arc<Self>, BrokerError> {
        let node = Arc::new(Self {
            id,
            hub: Hub::default(),
            settings,
            tasks,
            sockets: TaskTracker::new(),
            draining: CancellationToken::new(),
            drain_notice: OnceLock::new(),
            stopped,
            retiring: CancellationToken::new(),
            retired: CancellationToken::new(),
            about: Self::about(),
            interest: interest::Interest::new(Arc::clone(&link.broker)),
            broker: link.broker,
            registry: link.registry,
            pending: DashMap::new(),
            numbers: AtomicU64::new(rand::random::<u64>() >> 1),
            broker_state: parking_lot::Mutex::new(inbound::BrokerState::GOOD),
            lingering: linger::Lingering::default(),
            parked: DashMap::new(),
            crossings: crossing::Crossings::default(),
            followings: past::Followings::default(),
            unpublished: AtomicU64::new(0),
            rules_heard: AtomicU64::new(0),
            asked: asked::Asked::default(),
            asked_to_wait: asked::Asked::default(),
            keyed: asked::Asked::default(),
            siblings: dashmap::DashSet::new(),
            parting: AtomicUsize::new(0),
            lease: pulse::Lease::default(),
            sweeps: AtomicU32::new(0),
            crowds: dashmap::DashSet::new(),
            burying: AtomicBool::new(false),
            unleft: parking_lot::Mutex::default(),
            chronicle: chronicle::Chronicle::default(),
            tallies: signals::Tallies::default(),
        });
        node.broker.subscribe(&Topic::Node(id)).await?;
        // Subscribed to before it is read, and read before anybody is let in.
        node.broker.subscribe(&Topic::Cluster).await?;
        node.read_chronicle().await?;
        node.first_beat().await?;
        node.spawn("inbound", Arc::clone(&node).read_inbound(link.deliveries));
        for number in 0..node.hub.postmen.count() {
            let here = Arc::clone(&node);
            node.spawn("postman", async move {
                tokio::select! {
                    () = here.hub.postmen.work(number) => {}
                    () = here.stopped() => {}
                }
            });
        }
        node.spawn("pulse", Arc::clone(&node).keep_pulse());
        node.spawn("heads", Arc::clone(&node).watch_heads());
        node.spawn("chronicle", Arc::clone(&node).follow_chronicle());
        node.spawn("linger", Arc::clone(&node).end_lingering());
        Ok(node)
    }

    /// Spawns a task that a drain waits for.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(guarded(name, task));
    }

    /// Spawns the actor of a socket; a drain has it end before anything else.
    pub fn spawn_socket(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.sockets.spawn(guarded(name, task));
    }

    /// Sends a reply to whoever asked.
    pub fn reply(self: &Arc<Self>, to: ReplyTo, outcome: Reply) {
        match to {
            // An asker that gave up is no error.
            ReplyTo::Here(waiting) => drop(waiting.send(outcome)),
            ReplyTo::Node(node, number) => {
                self.asked.replied(&(node, number), &outcome);
                self.asked_to_wait.replied(&(node, number), &outcome);
                self.post(node, &Mail::Reply { number, outcome });
            }
            ReplyTo::Keyed(keyed) => self.reply_keyed(*keyed, outcome),
        }
    }

    /// Sends mail to one node. Mail that is lost is noticed by whoever waits for its reply.
    fn post(&self, node: NodeId, mail: &Mail) {
        let sent = Envelope::mail(mail)
            .and_then(|bytes| self.broker.publish(&Topic::Node(node), bytes).map_err(Failure::from));
        if let Err(failure) = sent {
            tracing::warn!(%node, %failure, "mail to a node was dropped");
        }
    }

    /// Completes when every socket is gone and the last loops may end.
    pub async fn stopped(&self) {
        self.stopped.cancelled().await;
    }
}

/// A panic in a task is logged and stays its own.
///
/// Not an async function: its future would hold the task twice, as what it was given and as what it waits for.
fn guarded(name: &'static str, task: impl Future<Output = ()>) -> impl Future<Output = ()> {
    std::panic::AssertUnwindSafe(task).catch_unwind().map(move |outcome| {
        if outcome.is_err() {
            tracing::error!(task = name, "a task panicked: this is a defect of the gateway");
        }
    })
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        tracing::debug!(error = &error as &dyn std::error::Error, "the broker failed");
        Self::new(Fault::BrokerUnavailable, "the broker can't be reached: try again")
    }
}
