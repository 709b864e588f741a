//! The end of a pair, by command: once, whoever asks, and also when a client socket is just opening.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::{sync::oneshot, time::Instant};

use super::{
    Found, Line, Node,
    ask::{BETWEEN_LOOKS, timed_out},
    once::Once,
    story::{RETRY, draft},
};
use crate::{
    broker::{BrokerError, Draft, Step},
    protocol::{Cause, Command, EventKind, Failure, Fault, Fence, PairId, ReasonParams, Reply},
};

impl Node {
    /// Ends a pair, with its client socket if it has one.
    ///
    /// # Errors
    /// [`Fault::NotFound`], [`Fault::Gone`], or what asking its actor fails with.
    pub async fn end_pair(
        self: &Arc<Self>,
        pair: PairId,
        reason: Option<String>,
        cause: Cause,
        line: &Line,
    ) -> Result<Value, Failure> {
        let deadline = Instant::now() + self.settings.command_timeout;
        loop {
            let end = Command::PairEnd(ReasonParams { reason: reason.clone() });
            match self.ask(pair, end, cause.clone(), line).await {
                Err(failure) if failure.fault == Fault::ClientDetached => {}
                done => return done,
            }
            // Nobody has a client socket: this node does it itself, unless one opens meanwhile.
            let (node, reason, cause_) = (Arc::clone(self), reason.clone(), cause.clone());
            match self.to_the_end("ending", async move { node.end_idle(pair, reason, cause_).await }).await {
                Ok(Some(result)) => return Ok(result),
                // Another ended it first: with the same key, its reply is this one's too.
                Err(failure) if failure.fault == Fault::Gone && cause.key.is_some() => {}
                Err(failure) => return Err(failure),
                Ok(None) => {}
            }
            if Instant::now() >= deadline {
                return Err(timed_out());
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Does something that must not be left in the middle when whoever wanted it goes away.
    pub(super) async fn to_the_end<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let (done, outcome) = oneshot::channel();
        self.spawn(name, async move { drop(done.send(work.await)) });
        outcome.await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Ends a pair that has no client socket; `None` when it has one, or the same key is being carried out.
    async fn end_idle(
        self: &Arc<Self>,
        pair: PairId,
        reason: Option<String>,
        cause: Cause,
    ) -> Result<Option<Value>, Failure> {
        let Found { record, .. } = self.find_pair(pair).await?;
        if record.holder.is_some() {
            return Ok(None);
        }
        let mut noted = None;
        if let Some(key) = &cause.key {
            match self.begin(pair, key, "pair.end").await? {
                Once::Now(token) => noted = Some((key.clone(), token)),
                Once::Known(Reply::Done(result)) => return Ok(Some(result)),
                Once::Known(Reply::Failed(failure)) => return Err(failure),
                Once::Known(Reply::Again | Reply::NotHere) => return Ok(None),
            }
        }
        let told = [draft(EventKind::PairEnded, json!({"reason": ended_because(reason)}), Some(cause))];
        let outcome = match self.end_surely(pair, record.fence, &told).await {
            Ok(Step::Taken(())) => Reply::Done(json!({})),
            Ok(_) => Reply::NotHere,
            // Whether it has ended is unknown: the key stays, and says so.
            Err(_) => return Err(timed_out()),
        };
        if let Some((key, token)) = noted {
            self.settle(pair, &key, token, "pair.end", &outcome).await;
        }
        Ok(if let Reply::Done(result) = outcome { Some(result) } else { None })
    }

    /// Ends a pair that has no client socket, asking again while the answer is lost.
    async fn end_surely(&self, pair: PairId, fence: Fence, told: &[Draft]) -> Result<Step<()>, BrokerError> {
        let deadline = Instant::now() + self.settings.command_timeout / 2;
        loop {
            match self.registry.end(pair, fence, None, told, &self.settings.keep).await {
                Err(_) if Instant::now() < deadline => tokio::time::sleep(RETRY).await,
                step => return step,
            }
        }
    }
}

/// The reason that goes with `pair.ended`.
#[must_use]
pub fn ended_because(reason: Option<String>) -> String {
    reason.unwrap_or_else(|| "ended by command".into())
}
