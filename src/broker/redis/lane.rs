//! A lane: what belongs to one primary.

use std::{sync::Arc, time::Duration};

use fred::{clients::Client, error::Error, types::config::Server};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    board::LaneId,
    connect::{self, COMMANDS, LISTENS, PUBLISHES, Target},
    live::{Live, Shared},
    publish::{self, Queue},
};

/// Three connections to one primary, each with its own reason: one that only listens, one that only publishes, so that
/// payloads keep their order, and one for everything that has an answer.
pub(super) struct Lane {
    pub(super) id: LaneId,
    pub(super) server: Server,
    pub(super) commands: Client,
    pub(super) queue: Arc<Queue>,
    pub(super) live: Live,
    stop: CancellationToken,
    /// Another lane has all of its slots: whoever still waits for an answer is told at once.
    pub(super) gone: CancellationToken,
}

impl Lane {
    /// Connects, within `limit`, and starts the lane's tasks. They end when the lane is closed, or with `stop`.
    pub(super) async fn open(
        id: LaneId,
        server: Server,
        target: &Target,
        shared: &Shared,
        limit: Duration,
        (tasks, stop): (&TaskTracker, &CancellationToken),
    ) -> Result<Arc<Self>, Error> {
        let config = target.to(&server);
        let connect = |purpose| connect::connect(&config, purpose, limit);
        let (commands, publisher, listener) =
            tokio::join!(connect(&COMMANDS), connect(&PUBLISHES), connect(&LISTENS));
        let (commands, publisher, listener) = match (commands, publisher, listener) {
            (Ok(commands), Ok(publisher), Ok(listener)) => (commands, publisher, listener),
            (commands, publisher, listener) => {
                let mut why = Error::new_canceled();
                for outcome in [commands, publisher, listener] {
                    match outcome {
                        Ok(client) => connect::quit(&client).await,
                        Err(error) => why = error,
                    }
                }
                return Err(why);
            }
        };
        let stop = stop.child_token();
        let queue = Arc::new(Queue::default());
        shared.standing.add(id).await;
        let live = Live::start(id, listener, shared, tasks, &stop);
        tasks.spawn({
            let (queue, commands, board, stop) =
                (queue.clone(), commands.clone(), shared.board.clone(), stop.clone());
            async move {
                publish::run(queue, publisher, board, stop).await;
                connect::quit(&commands).await;
            }
        });
        Ok(Arc::new(Self { id, server, commands, queue, live, stop, gone: CancellationToken::new() }))
    }

    /// Ends its tasks and closes its connections, in the background.
    pub(super) fn close(&self) {
        self.stop.cancel();
        self.gone.cancel();
    }
}
