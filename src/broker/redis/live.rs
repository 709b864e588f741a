//! Subscriptions and what comes in through them: each lane's connection that only listens, and its two tasks.
//!
//! The *keeper* subscribes, unsubscribes, and puts everything in force again after a reconnect. The *reader* turns
//! messages into deliveries.
//!
//! Channels are sharded ones: in Redis Cluster a message then goes to one primary and its replicas, not to everyone,
//! and on a single server they cost the same. fred neither confirms a subscription to several of them nor tells when
//! Redis takes one away (a slot moved), so each is subscribed to with a command of its own, whose answer confirms it
//! (many are under way at once), and Redis is asked now and then how many are in force on this very connection.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::{ClientInterface, ClientLike, EventInterface, PubsubInterface},
    types::{CustomCommand, Value, config::Server},
};
use futures_util::future::join_all;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    board::{Board, LaneId},
    connect::{ANSWER, quit},
    keys::Keys,
    reader::{Reader, Signal},
    script::{absent, unavailable},
    standing::Standing,
};
use crate::{
    broker::{BrokerError, Delivery},
    protocol::Topic,
};

/// How many changes are put into force with one round trip.
const CHANGES: usize = 512;

/// How many channels are subscribed to at once.
const CHANNELS: usize = 1_000;

/// How often the keeper looks after what waits.
const TICK: Duration = Duration::from_millis(200);

/// How soon a channel is looked for at another lane.
const AGAIN: Duration = Duration::from_millis(5);

/// How often an idle connection must show that it is alive: half-open ones look like silence otherwise.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// How soon Redis is asked again after it has counted other subscriptions than are wanted, or after a slot has moved.
const SOON: Duration = Duration::from_millis(500);

/// How long a new primary may still take subscriptions away: it does so each time that it is told that it owns a slot,
/// which those who move slots, and the cluster's other members, may do again and again.
const UNSETTLED: Duration = Duration::from_secs(5);

/// What became of a change.
type Outcome = Result<(), Failed>;

enum Failed {
    /// Another lane has the channel by now.
    Elsewhere,
    /// As it says.
    With(BrokerError),
}

/// A change of what is subscribed to.
struct Change {
    topic: Topic,
    wanted: bool,
    since: Instant,
    done: oneshot::Sender<Outcome>,
}

/// What a keeper is asked for.
enum Asked {
    Change(Change),
    /// Puts channels in force before they are listened to here.
    TakeOver(Vec<String>, oneshot::Sender<bool>),
}

/// Where changes are asked for.
pub(super) struct Live {
    asked: mpsc::Sender<Asked>,
}

impl Live {
    /// Starts both tasks of a lane. Nothing must have been subscribed over `client` before.
    pub(super) fn start(
        lane: LaneId,
        client: Client,
        shared: &Shared,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let Shared { keys, board, standing, deliveries } = shared.clone();
        let (ask, asked) = mpsc::channel(CHANGES);
        let (signals, signalled) = mpsc::channel(8);
        let reader = Reader {
            lane,
            messages: client.message_rx(),
            signals: signalled,
            // If it is closed already, the reader ends at once.
            deliveries: deliveries.upgrade().unwrap_or_else(|| mpsc::channel(1).0),
            board: board.clone(),
            standing,
            down: false,
            lossy: false,
        };
        tasks.spawn(reader.run(stop.clone()));
        let keeper = Keeper {
            lane,
            losses: client.error_rx(),
            reconnects: client.reconnect_rx(),
            client,
            keys,
            board,
            signals,
            up: true,
            differs: false,
            unsettled: Instant::now(),
            pending: Vec::new(),
            spoken: Instant::now(),
        };
        tasks.spawn(keeper.run(asked, stop.clone()));
        Self { asked: ask }
    }

    /// Puts channels in force; false when that is not certain.
    pub(super) async fn take_over(&self, channels: Vec<String>) -> bool {
        let (done, outcome) = oneshot::channel();
        self.asked.send(Asked::TakeOver(channels, done)).await.is_ok() && outcome.await.unwrap_or(false)
    }

    async fn change(&self, topic: &Topic, wanted: bool, since: Instant) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let change = Change { topic: topic.clone(), wanted, since, done };
        // A lane that is gone has nothing any more.
        self.asked.send(Asked::Change(change)).await.map_err(|_| Failed::Elsewhere)?;
        outcome.await.unwrap_or(Err(Failed::Elsewhere))
    }
}

/// What the tasks of all lanes share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) keys: Keys,
    pub(super) board: Arc<Board>,
    pub(super) standing: Arc<Standing>,
    /// Closed when the tasks that deliver have ended: only they keep it open.
    pub(super) deliveries: mpsc::WeakSender<Delivery>,
}

impl Shared {
    /// Returns when a subscription is in force (or not any more), at whichever lane has it then. After an error it is
    /// still wanted: it comes into force when Redis is back, before `Lost` is delivered.
    pub(super) async fn subscribe(
        &self,
        topic: &Topic,
        wanted: bool,
        stop: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let (since, channel) = (Instant::now(), self.keys.live(topic));
        while !stop.is_cancelled() {
            let lane = self.board.lane(&channel).ok_or_else(absent)?;
            match lane.live.change(topic, wanted, since).await {
                Err(Failed::With(error)) => return Err(error),
                // It may have moved since.
                Ok(()) if self.board.lane(&channel).is_some_and(|now| now.id == lane.id) => return Ok(()),
                Ok(()) => {}
                Err(Failed::Elsewhere) if since.elapsed() >= ANSWER => return Err(silent()),
                Err(Failed::Elsewhere) => tokio::time::sleep(AGAIN).await,
            }
        }
        Err(closed())
    }
}

fn closed() -> BrokerError {
    unavailable(Error::new(ErrorKind::Canceled, "the node is stopping"))
}

fn silent() -> BrokerError {
    unavailable(Error::new(ErrorKind::Timeout, "no answer in time"))
}

/// The task that keeps a lane's subscriptions in force. It waits for losses of the connection, for reconnects, for
/// changes, and for the clock.
struct Keeper {
    lane: LaneId,
    client: Client,
    keys: Keys,
    board: Arc<Board>,
    signals: mpsc::Sender<Signal>,
    losses: broadcast::Receiver<(Error, Option<Server>)>,
    reconnects: broadcast::Receiver<Server>,
    /// Whether everything wanted is in force.
    up: bool,
    /// Whether Redis counted other subscriptions than are wanted when it was last asked.
    differs: bool,
    /// Until when what was taken over may be taken away again.
    unsettled: Instant,
    /// Changes that wait until it is.
    pending: Vec<Change>,
    /// When Redis was last spoken to.
    spoken: Instant,
}

impl Keeper {
    async fn run(mut self, mut asked: mpsc::Receiver<Asked>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // On the heap: fred's futures are large, and this one lives as long as the node.
        let turns = Box::pin(async { while self.turn(&mut asked, &mut tick).await {} });
        stop.run_until_cancelled(turns).await;
        quit(&self.client).await;
    }

    /// One turn; false when there is nothing more to do. Losses come first: fred announces a loss before the
    /// reconnect that follows it, and taken the other way round the loss would look like a second one.
    async fn turn(&mut self, asked: &mut mpsc::Receiver<Asked>, tick: &mut Interval) -> bool {
        let mut all = Vec::new();
        tokio::select! {
            biased;
            loss = self.losses.recv() => match loss {
                Err(broadcast::error::RecvError::Closed) => return false,
                Ok((error, _)) => self.lose(&error).await,
                Err(broadcast::error::RecvError::Lagged(_)) => self.lose(&"many losses").await,
            },
            reconnect = self.reconnects.recv() => match reconnect {
                Err(broadcast::error::RecvError::Closed) => return false,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => self.restore().await,
            },
            count = asked.recv_many(&mut all, CHANGES) => match count {
                0 => return false,
                _ => self.do_asked(all).await,
            },
            _ = tick.tick() => self.look_after().await,
        }
        true
    }

    async fn lose(&mut self, error: &(dyn std::fmt::Display + Sync)) {
        if std::mem::replace(&mut self.up, false) {
            tracing::warn!(%error, "lost the subscriber connection");
            self.signal(Signal::Down).await;
        }
    }

    /// Puts everything wanted in force, then says so: in this order, or something could be lost after `Lost`.
    async fn restore(&mut self) {
        self.lose(&"reconnected").await;
        self.differs = false;
        let channels = self.board.channels(self.lane);
        if let Err(error) = self.put_in_force(Vec::new(), channels).await {
            tracing::warn!(%error, "could not subscribe again yet");
            return;
        }
        if !self.is_undisturbed() {
            return;
        }
        self.up = true;
        self.signal(Signal::Restored).await;
        tracing::info!("the subscriber connection is back");
        for change in self.pending.drain(..) {
            drop(change.done.send(Ok(())));
        }
    }

    async fn do_asked(&mut self, all: Vec<Asked>) {
        let mut changes = Vec::new();
        for one in all {
            match one {
                Asked::Change(change) => changes.push(change),
                Asked::TakeOver(channels, done) => {
                    self.unsettled = Instant::now() + UNSETTLED;
                    let in_force = self.up && self.put_in_force(Vec::new(), channels).await.is_ok();
                    // Nobody waits for it any more when the lookout has ended.
                    let _ = done.send(in_force && self.is_undisturbed());
                }
            }
        }
        if !changes.is_empty() {
            self.change(changes).await;
        }
    }

    /// Changes take effect in the order in which they were asked for; only the last for each topic goes to Redis.
    async fn change(&mut self, changes: Vec<Change>) {
        let mut last = HashMap::new();
        for change in changes {
            let channel = self.keys.live(&change.topic);
            if self.board.want(&channel, &change.topic, change.wanted, self.lane) {
                last.insert(channel, change.wanted);
                self.pending.push(change);
            } else {
                drop(change.done.send(Err(Failed::Elsewhere)));
            }
        }
        if !self.up {
            return;
        }
        let (on, off): (Vec<_>, Vec<_>) = last.into_iter().partition(|(_, wanted)| *wanted);
        let names = |list: Vec<(String, bool)>| list.into_iter().map(|(channel, _)| channel).collect();
        match self.put_in_force(names(off), names(on)).await {
            Ok(()) if self.is_undisturbed() => {
                for change in self.pending.drain(..) {
                    drop(change.done.send(Ok(())));
                }
            }
            // The turn that handles the loss restores everything, these changes included.
            Ok(()) => {}
            // In force or not, who knows: treated like a lost connection until all of it is confirmed.
            Err(error) => self.lose(&error).await,
        }
    }

    /// Tells Redis, and waits until it has confirmed.
    async fn put_in_force(&mut self, off: Vec<String>, on: Vec<String>) -> Result<(), BrokerError> {
        self.spoken = Instant::now();
        let outcome = self.tell(off, on).await;
        if let Err(error) = &outcome {
            tracing::debug!(%error, lane = self.lane, "subscriptions are not in force");
            // Maybe the slot is another primary's.
            self.board.doubts.notify_one();
        }
        outcome.map_err(unavailable)
    }

    async fn tell(&self, off: Vec<String>, on: Vec<String>) -> Result<(), Error> {
        for channels in off.chunks(CHANNELS) {
            // One by one, since in Redis Cluster they need not share a slot.
            let each = channels.iter().map(|channel| self.client.sunsubscribe(vec![channel.clone()]));
            for outcome in join_all(each).await {
                outcome?;
            }
        }
        if !off.is_empty() && self.client.ping::<()>(None).await.is_err() {
            // fred expects no answer to the end of a subscription, so a refusal is taken for the answer to what
            // follows, and all answers after it are out of place.
            self.client.force_reconnection().await?;
            return Err(Error::new(ErrorKind::Protocol, "a subscription could not be ended"));
        }
        for channels in on.chunks(CHANNELS) {
            let subscribe = || CustomCommand::new_static("SSUBSCRIBE", None::<u16>, false);
            let each =
                channels.iter().map(|channel| self.client.custom::<Value, _>(subscribe(), vec![channel.as_str()]));
            for outcome in join_all(each).await {
                outcome?;
            }
        }
        Ok(())
    }

    /// Asks Redis how many subscriptions are in force on this connection: it takes them away when a slot moves. Once
    /// they may differ while the board is being changed; twice in a row they are put in force anew.
    async fn count(&mut self) {
        let wanted = self.board.count(self.lane);
        let Ok(info) = self.client.client_info::<String>().await else { return };
        let Some(wanted) = wanted.filter(|wanted| self.board.count(self.lane) == Some(*wanted)) else { return };
        let in_force = info.split(' ').find_map(|field| field.strip_prefix("ssub=")?.parse::<usize>().ok());
        // Redis before 7.0.3 does not tell.
        let differs = in_force.is_some_and(|in_force| in_force != wanted);
        if differs {
            self.board.doubts.notify_one();
        }
        if std::mem::replace(&mut self.differs, differs) && differs && self.is_undisturbed() {
            self.lose(&format!("redis has {in_force:?} subscriptions, not {wanted}")).await;
            if in_force > Some(wanted) {
                // Which are too many, only a new connection is sure not to have.
                drop(self.client.force_reconnection().await);
            }
        }
    }

    /// Whether the connection has been the same since the last turn, so that a PING confirms what went before it.
    fn is_undisturbed(&self) -> bool {
        self.losses.is_empty() && self.reconnects.is_empty()
    }

    async fn look_after(&mut self) {
        let (late, pending) =
            std::mem::take(&mut self.pending).into_iter().partition(|change| change.since.elapsed() >= ANSWER);
        self.pending = pending;
        let late: Vec<Change> = late;
        for change in late {
            drop(change.done.send(Err(Failed::With(silent()))));
        }
        if !self.up {
            // Maybe there is another primary.
            self.board.doubts.notify_one();
        }
        let soon = self.differs || Instant::now() < self.unsettled;
        let pause = if soon { SOON } else { HEARTBEAT };
        if self.up && self.spoken.elapsed() >= pause {
            self.spoken = Instant::now();
            // An answer that doesn't come makes fred give the connection up, which is an event like any other.
            self.count().await;
        } else if !self.up && self.client.is_connected() && self.spoken.elapsed() >= TICK {
            self.restore().await;
        }
    }

    async fn signal(&self, signal: Signal) {
        // The reader goes only when nobody takes deliveries any more.
        drop(self.signals.send(signal).await);
    }
}
