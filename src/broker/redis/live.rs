//! Subscriptions: what is asked of the task that listens to a primary, see [`super::listener`].

use std::sync::Arc;

use fred::error::{Error, ErrorKind};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    board::Board,
    connect::ANSWER,
    keys::Keys,
    script::{absent, unavailable},
    standing::Standing,
};
use crate::{
    broker::{BrokerError, Delivery},
    protocol::Topic,
};

/// How many changes are put into force with one round trip.
pub(super) const CHANGES: usize = 512;

/// How soon a channel is looked for at another lane.
const AGAIN: Duration = Duration::from_millis(5);

/// What became of a change.
pub(super) type Outcome = Result<(), Failed>;

pub(super) enum Failed {
    /// Another lane has the channel by now.
    Elsewhere,
    /// As it says.
    With(BrokerError),
}

/// A change of what is subscribed to.
pub(super) struct Change {
    pub(super) topic: Topic,
    pub(super) wanted: bool,
    pub(super) since: Instant,
    pub(super) done: oneshot::Sender<Outcome>,
}

/// What a listener is asked for.
pub(super) enum Asked {
    Change(Change),
    /// Puts channels in force before they are listened to here.
    TakeOver(Vec<String>, oneshot::Sender<bool>),
}

/// Where changes are asked for.
pub(super) struct Live {
    asked: mpsc::Sender<Asked>,
}

impl Live {
    /// With what the listener hears them by.
    pub(super) fn new() -> (Self, mpsc::Receiver<Asked>) {
        let (asked, heard) = mpsc::channel(CHANGES);
        (Self { asked }, heard)
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

pub(super) fn silent() -> BrokerError {
    unavailable(Error::new(ErrorKind::Timeout, "no answer in time"))
}
