//! The end of a pair, by command: once, whoever asks, and also when a client socket is just opening.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Found, Line, Node,
    ask::{BETWEEN_LOOKS, timed_out},
};
use crate::protocol::{Cause, Command, EventKind, Failure, Fault, Fence, PairId, ReasonParams, Reply};

impl Node {
    /// Marks a pair as ended, if nobody holds it and `fence` was its last: true for exactly one caller.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn end_record(&self, pair: PairId, fence: Fence) -> Result<bool, Failure> {
        Ok(self.registry.end(pair, Some(fence), self.settings.keep.age).await?.is_some())
    }

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
            match self.end_idle(pair, reason.clone(), cause.clone()).await {
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
        let key = cause.key.clone();
        if let Some(key) = &key {
            match self.begin(pair, key, "pair.end").await? {
                None => {}
                Some(Reply::Done(result)) => return Ok(Some(result)),
                Some(Reply::Failed(failure)) => return Err(failure),
                Some(Reply::Again | Reply::NotHere) => return Ok(None),
            }
        }
        let outcome = match self.end_record(pair, record.fence).await {
            Ok(true) => {
                let data = json!({"reason": ended_because(reason)});
                self.raise(pair, EventKind::PairEnded, data, Some(cause)).await?;
                Reply::Done(json!({}))
            }
            Ok(false) => Reply::NotHere,
            Err(failure) => Reply::Failed(failure),
        };
        if let Some(key) = &key {
            self.settle(pair, key, "pair.end", &outcome).await;
        }
        match outcome {
            Reply::Done(result) => Ok(Some(result)),
            Reply::Failed(failure) => Err(failure),
            Reply::Again | Reply::NotHere => Ok(None),
        }
    }
}

/// The reason that goes with `pair.ended`.
#[must_use]
pub fn ended_because(reason: Option<String>) -> String {
    reason.unwrap_or_else(|| "ended by command".into())
}
