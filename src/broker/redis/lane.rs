//! A lane: what belongs to one primary.

use std::{sync::Arc, time::Duration};

use fred::{clients::Client, error::Error, types::config::Server};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    board::LaneId,
    connect::{self, COMMANDS, Target},
    listener::Listener,
    live::{Live, Shared},
    publish::{Publisher, Queue},
    wire::Wire,
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
        let queue = Arc::new(Queue::default());
        let (commands, publisher, listener) = tokio::join!(
            connect::connect(&config, &COMMANDS, limit),
            Publisher::open(queue.clone(), config.clone(), shared.board.clone(), limit),
            Wire::open(&config, limit)
        );
        let commands = commands?;
        let (publisher, listener) = match (publisher, listener) {
            (Ok(publisher), Ok(listener)) => (publisher, listener),
            (Err(why), _) | (_, Err(why)) => {
                connect::quit(&commands).await;
                return Err(why);
            }
        };
        let stop = stop.child_token();
        shared.standing.add(id).await;
        let (live, asked) = Live::new();
        tasks.spawn(Listener::new(id, listener, config, shared).run(asked, stop.clone()));
        tasks.spawn({
            let (commands, stop) = (commands.clone(), stop.clone());
            async move {
                publisher.run(stop).await;
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
