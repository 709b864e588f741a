//! Subscriptions and what comes in through them: the connection that only listens, and its two tasks.
//!
//! The *keeper* subscribes, unsubscribes, and puts everything in force again after a reconnect. The *reader* turns
//! messages into deliveries. Everything that the node is told comes from the reader, so it has one order.
//!
//! fred's `subscribe` returns when the command is queued, not when Redis has it. Redis answers a connection's commands
//! in order, so the PING that follows confirms it, unless the connection was lost in between: then the keeper has
//! an event about that, looks for it first, and starts over.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fred::{
    clients::Client,
    error::Error,
    interfaces::{ClientLike, EventInterface, PubsubInterface},
    types::config::Server,
};
use parking_lot::RwLock;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    connect::ANSWER,
    keys::Keys,
    reader::{Reader, Signal},
    script::unavailable,
};
use crate::{
    broker::{BrokerError, Delivery},
    protocol::Topic,
};

/// How many changes are put into force with one round trip.
const CHANGES: usize = 512;

/// How many channels one SUBSCRIBE names.
const CHANNELS: usize = 1_000;

/// How often the keeper looks after what waits.
const TICK: Duration = Duration::from_millis(200);

/// How often an idle connection must show that it is alive: half-open ones look like silence otherwise.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// What is subscribed to, by channel. Shared by the two tasks.
pub(super) type Wanted = Arc<RwLock<HashMap<String, Topic>>>;

/// A change of what is subscribed to.
struct Change {
    topic: Topic,
    wanted: bool,
    since: Instant,
    done: oneshot::Sender<Result<(), BrokerError>>,
}

/// Where changes are asked for.
pub(super) struct Live {
    changes: mpsc::Sender<Change>,
}

impl Live {
    /// Starts both tasks. Nothing must have been subscribed over `client` before.
    pub(super) fn start(
        client: Client,
        keys: Keys,
        deliveries: mpsc::Sender<Delivery>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let (changes, asked) = mpsc::channel(CHANGES);
        let (signals, signalled) = mpsc::channel(8);
        let wanted = Wanted::default();
        tasks.spawn(Reader::new(client.message_rx(), signalled, deliveries, wanted.clone()).run(stop.clone()));
        tasks.spawn(Keeper::new(client, keys, wanted, signals).run(asked, stop.clone()));
        Self { changes }
    }

    /// Returns when the subscription is in force. After an error it is still wanted: it comes into force when Redis
    /// is back, before `Lost` is delivered.
    pub(super) async fn subscribe(&self, topic: &Topic) -> Result<(), BrokerError> {
        self.change(topic, true).await
    }

    pub(super) async fn unsubscribe(&self, topic: &Topic) -> Result<(), BrokerError> {
        self.change(topic, false).await
    }

    async fn change(&self, topic: &Topic, wanted: bool) -> Result<(), BrokerError> {
        let (done, outcome) = oneshot::channel();
        let change = Change { topic: topic.clone(), wanted, since: Instant::now(), done };
        self.changes.send(change).await.map_err(|_| closed())?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }
}

fn closed() -> BrokerError {
    unavailable(Error::new(fred::error::ErrorKind::Canceled, "the node is stopping"))
}

fn silent() -> BrokerError {
    unavailable(Error::new(fred::error::ErrorKind::Timeout, "no answer in time"))
}

/// The task that keeps the subscriptions in force. It waits for losses of the connection, for reconnects, for
/// changes, and for the clock.
struct Keeper {
    client: Client,
    keys: Keys,
    wanted: Wanted,
    signals: mpsc::Sender<Signal>,
    losses: broadcast::Receiver<(Error, Option<Server>)>,
    reconnects: broadcast::Receiver<Server>,
    /// Whether everything wanted is in force.
    up: bool,
    /// Changes that wait until it is.
    pending: Vec<Change>,
    /// When Redis was last spoken to.
    spoken: Instant,
}

impl Keeper {
    fn new(client: Client, keys: Keys, wanted: Wanted, signals: mpsc::Sender<Signal>) -> Self {
        let (losses, reconnects) = (client.error_rx(), client.reconnect_rx());
        let (pending, spoken) = (Vec::new(), Instant::now());
        Self { client, keys, wanted, signals, losses, reconnects, up: true, pending, spoken }
    }

    async fn run(mut self, mut asked: mpsc::Receiver<Change>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // On the heap: fred's futures are large, and this one lives as long as the node.
        let turns = Box::pin(async { while self.turn(&mut asked, &mut tick).await {} });
        stop.run_until_cancelled(turns).await;
        drop(self.client.quit().await);
    }

    /// One turn; false when there is nothing more to do. Losses come first: fred announces a loss before the
    /// reconnect that follows it, and taken the other way round the loss would look like a second one.
    async fn turn(&mut self, asked: &mut mpsc::Receiver<Change>, tick: &mut Interval) -> bool {
        let mut changes = Vec::new();
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
            count = asked.recv_many(&mut changes, CHANGES) => match count {
                0 => return false,
                _ => self.change(changes).await,
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
        let channels: Vec<String> = self.wanted.read().keys().cloned().collect();
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

    /// Changes take effect in the order in which they were asked for; only the last for each topic goes to Redis.
    async fn change(&mut self, changes: Vec<Change>) {
        let mut last = HashMap::new();
        {
            let mut wanted = self.wanted.write();
            for Change { topic, wanted: wants, .. } in &changes {
                let channel = self.keys.live(topic);
                if *wants {
                    wanted.insert(channel.clone(), topic.clone());
                } else {
                    wanted.remove(&channel);
                }
                last.insert(channel, *wants);
            }
        }
        self.pending.extend(changes);
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
        for channels in off.chunks(CHANNELS) {
            self.client.unsubscribe(channels.to_vec()).await.map_err(unavailable)?;
        }
        for channels in on.chunks(CHANNELS) {
            self.client.subscribe(channels.to_vec()).await.map_err(unavailable)?;
        }
        self.client.ping::<()>(None).await.map_err(unavailable)
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
            drop(change.done.send(Err(silent())));
        }
        if self.up && self.spoken.elapsed() >= HEARTBEAT {
            self.spoken = Instant::now();
            // An answer that doesn't come makes fred give the connection up, which is an event like any other.
            drop(self.client.ping::<()>(None).await);
        } else if !self.up && self.client.is_connected() && self.spoken.elapsed() >= TICK {
            self.restore().await;
        }
    }

    async fn signal(&self, signal: Signal) {
        // The reader goes only when nobody takes deliveries any more.
        drop(self.signals.send(signal).await);
    }
}
