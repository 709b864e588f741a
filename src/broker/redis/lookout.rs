//! The task that sees to it that every slot has the lane of its primary.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use fred::{
    error::{Error, ErrorKind},
    interfaces::ClientLike,
    types::{CustomCommand, Value, config::Server},
};
use futures_util::future::join_all;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    board::{LaneId, Moves},
    connect::{Setup, Target},
    lane::Lane,
    live::Shared,
    topology::{Topology, View},
};
use crate::broker::Delivery;

/// How long the first connections may take, in all.
const START: Duration = Duration::from_secs(9);

/// How long a connection to a new primary may take.
const JOIN: Duration = Duration::from_secs(2);

/// How often it looks when nothing makes it doubt.
const LOOK: Duration = Duration::from_secs(1);

/// How long it waits after a look, however much it is made to doubt.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a hand-over looks for more before it holds up whoever wants more.
const TURNS: usize = 3;

/// How many primaries there may be.
const LANES: usize = 256;

pub(super) struct Lookout {
    target: Target,
    topology: Topology,
    shared: Shared,
    tasks: TaskTracker,
    stop: CancellationToken,
    next: LaneId,
}

impl Lookout {
    /// Connects to all primaries, or fails within ten seconds; then keeps looking.
    pub(super) async fn start(
        target: Target,
        shared: &Shared,
        deliveries: mpsc::Sender<Delivery>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let end = Instant::now() + START;
        let (tasks, stop) = (tasks.clone(), stop.clone());
        let mut lookout = Self { target, topology: Topology::new(), shared: shared.clone(), tasks, stop, next: 1 };
        let view = loop {
            match lookout.topology.look(&lookout.target).await {
                Some(view) => break view,
                None if Instant::now() + JOIN + JOIN >= end => {
                    return Err(Error::new(ErrorKind::IO, "nobody tells who the primaries are"));
                }
                None => tokio::time::sleep(PAUSE).await,
            }
        };
        let opened = loop {
            let opened = lookout.open(&view.owners, end.saturating_duration_since(Instant::now())).await;
            let Some(error) = opened.values().find_map(|outcome| outcome.as_ref().err().cloned()) else {
                break opened;
            };
            for lane in opened.into_values().flatten() {
                lane.close();
            }
            // A server that is just starting refuses connections for a moment.
            if *error.kind() != ErrorKind::IO || Instant::now() + JOIN >= end {
                lookout.topology.close().await;
                return Err(error);
            }
            tokio::time::sleep(PAUSE * 5).await;
        };
        lookout.follow(&view, opened).await;
        if shared.board.lanes().is_empty() {
            return Err(Error::new(ErrorKind::Cluster, "no primary has any slots"));
        }
        if !matches!(lookout.target.setup, Setup::Single(_)) {
            let tasks = lookout.tasks.clone();
            tasks.spawn(lookout.run(deliveries));
        }
        Ok(())
    }

    /// Keeps `deliveries` open while there may be no lane that does.
    async fn run(mut self, _deliveries: mpsc::Sender<Delivery>) {
        let stop = self.stop.clone();
        // On the heap: fred's futures are large, and this one lives as long as the node.
        let looks = Box::pin(async {
            loop {
                tokio::time::sleep(PAUSE).await;
                drop(tokio::time::timeout(LOOK, self.shared.board.doubts.notified()).await);
                self.look().await;
            }
        });
        stop.run_until_cancelled(looks).await;
        self.topology.close().await;
    }

    async fn look(&mut self) {
        let Some(view) = self.topology.look(&self.target).await else { return };
        let known: HashSet<Server> = self.shared.board.lanes().into_iter().map(|lane| lane.server.clone()).collect();
        let new: Vec<_> = view.owners.iter().filter(|server| !known.contains(server)).cloned().collect();
        let opened = self.open(&new, JOIN).await;
        self.follow(&view, opened).await;
    }

    /// Connects to primaries that have no lane yet.
    async fn open(&mut self, servers: &[Server], limit: Duration) -> HashMap<Server, Result<Arc<Lane>, Error>> {
        let room = LANES.saturating_sub(self.shared.board.lanes().len());
        let first = self.next;
        self.next += u32::try_from(servers.len()).unwrap_or_default();
        let this = &*self;
        let each = servers.iter().take(room).zip(first..).map(|(server, id)| async move {
            let opened = this.open_one(id, server, limit).await;
            if let Err(error) = &opened {
                tracing::warn!(%server, %error, "could not connect to a primary");
            }
            (server.clone(), opened)
        });
        join_all(each).await.into_iter().collect()
    }

    async fn open_one(&self, id: LaneId, server: &Server, limit: Duration) -> Result<Arc<Lane>, Error> {
        let around = (&self.tasks, &self.stop);
        let lane = Lane::open(id, server.clone(), &self.target, &self.shared, limit, around).await?;
        if matches!(self.target.setup, Setup::Sentinel { .. }) {
            // A Sentinel that was away may name one that is none any more.
            let role = CustomCommand::new_static("ROLE", None::<u16>, false);
            let answer = lane.commands.custom::<Value, Value>(role, Vec::new()).await;
            let is_primary = match &answer {
                Ok(Value::Array(fields)) => fields.first().and_then(Value::as_str).as_deref() == Some("master"),
                _ => false,
            };
            if !is_primary {
                lane.close();
                self.shared.standing.forget(id).await;
                return Err(Error::new(ErrorKind::Sentinel, "it is not the primary that a Sentinel takes it for"));
            }
        }
        Ok(lane)
    }

    /// Gives every slot the lane of its primary.
    async fn follow(&self, view: &View, opened: HashMap<Server, Result<Arc<Lane>, Error>>) {
        let board = &self.shared.board;
        let first = board.lanes().is_empty();
        for lane in opened.into_values().flatten() {
            board.add(lane);
        }
        let lanes: HashMap<Server, LaneId> =
            board.lanes().into_iter().map(|lane| (lane.server.clone(), lane.id)).collect();
        let targets: Vec<Option<LaneId>> = view.owners.iter().map(|server| lanes.get(server).copied()).collect();
        let moves = board.moves(|slot| targets[usize::from(view.slots[usize::from(slot)]?)]);
        if !moves.is_empty() && !self.hand_over(&moves).await {
            return;
        }
        let idle = board.take_idle();
        for lane in &idle {
            lane.close();
        }
        // At the start nobody listens yet, and nothing can have been lost.
        if !moves.is_empty() && !first {
            let gone: Vec<_> = idle.iter().map(|lane| lane.id).collect();
            tracing::info!(slots = moves.len(), primaries = ?view.owners, "the primaries have changed");
            self.shared.standing.moved(&gone).await;
        }
    }

    /// Puts everything in force at the new lanes, and switches. False when that did not work: the next look tries
    /// again.
    async fn hand_over(&self, moves: &Moves) -> bool {
        let handed_over = self.take_turns(moves).await;
        self.shared.board.freeze(std::iter::empty());
        handed_over
    }

    async fn take_turns(&self, moves: &Moves) -> bool {
        let board = &self.shared.board;
        let lanes: HashMap<LaneId, Arc<Lane>> = board.lanes().into_iter().map(|lane| (lane.id, lane)).collect();
        let mut done = HashSet::new();
        for turn in 0.. {
            // More may be wanted meanwhile, so it is looked for until nothing is left in the moment of switching.
            if turn == TURNS {
                board.freeze(moves.keys().copied());
            }
            let left = board.hand_over(moves, &done);
            if left.is_empty() {
                if board.switch(moves, &done) {
                    return true;
                }
                continue;
            }
            for (to, channels) in left {
                let Some(lane) = lanes.get(&to) else { return false };
                if !lane.live.take_over(channels.clone()).await {
                    tracing::debug!(server = %lane.server, "could not take over yet");
                    return false;
                }
                done.extend(channels);
            }
        }
        false
    }
}
