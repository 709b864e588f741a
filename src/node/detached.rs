//! Commands about what is kept of a pair. While it has a client socket, that one's actor has the only true copy, and
//! carries them out; else whichever node is asked does.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Found, Line, Node,
    ask::{BETWEEN_LOOKS, detached, timed_out},
    story::draft,
};
use crate::protocol::{Cause, Command, EventKind, Failure, Fault, PairId, Topic, Watching};

impl Node {
    /// Chooses which events of its room a pair's siblings are told.
    ///
    /// # Errors
    /// [`Fault::Gone`] after the pair's end, [`Fault::NotFound`] for an unknown pair, [`Fault::Timeout`], or when the
    /// broker can't be reached.
    pub async fn watch(
        self: &Arc<Self>,
        pair: PairId,
        command: Command,
        cause: Cause,
        line: &Line,
    ) -> Result<Value, Failure> {
        let deadline = Instant::now() + self.settings.command_timeout;
        while Instant::now() < deadline {
            match self.ask(pair, command.clone(), cause.clone(), line).await {
                Err(failure) if failure.fault == Fault::ClientDetached => {}
                done => return done,
            }
            let (node, key, name) = (Arc::clone(self), cause.key.clone(), command.name());
            let (again, cause) = (command.clone(), cause.clone());
            match self.once(pair, key, name, async move { node.watch_detached(pair, &again, cause).await }).await {
                // One has opened meanwhile.
                Err(failure) if failure.fault == Fault::ClientDetached => sleep(BETWEEN_LOOKS).await,
                done => return done,
            }
        }
        Err(timed_out())
    }

    async fn watch_detached(&self, pair: PairId, command: &Command, cause: Cause) -> Result<Value, Failure> {
        let Found { record, mut facts } = self.find_pair(pair).await?;
        if record.holder.is_some() {
            return Err(detached());
        }
        facts.watching = watching_after(facts.watching, command);
        if !self.registry.revise(pair, record.fence, facts.write()?).await? {
            return Err(detached());
        }
        let told =
            draft(EventKind::ClientChanged, json!({"watching": facts.watching, "meta": facts.meta}), Some(cause));
        self.broker.append(&Topic::Pair(pair), None, &[told], &self.settings.keep).await?;
        Ok(json!(facts.watching))
    }
}

/// What is watched after a command.
#[must_use]
pub fn watching_after(before: Watching, command: &Command) -> Watching {
    match command {
        Command::Watch(params) => params.change(before, true),
        Command::Unwatch(params) => params.change(before, false),
        _ => before,
    }
}
