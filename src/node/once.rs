//! Commands with a key: carried out once, by whichever sibling on whichever node they are sent again.
//!
//! The node that is about to carry one out notes its key in the registry first, and keeps the reply there after the
//! effect. A command that was refused before it had any effect is forgotten, so that it can be sent again.

use std::{sync::Arc, time::Duration};

use super::{ClientMail, Node, ReplyTo};
use crate::{
    broker::Begun,
    hub::Absent,
    protocol::{Failure, PairId, Reply},
};

/// How long a key is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Where the reply to a command with a key goes, and what it was.
#[derive(Debug)]
pub struct Keyed {
    pair: PairId,
    key: String,
    to: ReplyTo,
}

impl Node {
    /// Leaves a command for its actor; if it has a key, not before it is sure that it was not carried out already.
    /// Never waits.
    pub(super) fn deliver(self: &Arc<Self>, pair: PairId, mail: ClientMail) {
        match mail {
            ClientMail::Command { command, cause, reply } if cause.key.is_some() && self.hub.has(pair) => {
                let node = Arc::clone(self);
                self.spawn("command with a key", async move {
                    let key = cause.key.clone().unwrap_or_default();
                    match node.begin(pair, &key).await {
                        Ok(None) => {
                            let reply = ReplyTo::Keyed(Box::new(Keyed { pair, key, to: reply }));
                            node.hand_over(pair, ClientMail::Command { command, cause, reply });
                        }
                        Ok(Some(known)) => node.reply(reply, known),
                        Err(failure) => node.reply(reply, Reply::Failed(failure)),
                    }
                });
            }
            mail => self.hand_over(pair, mail),
        }
    }

    fn hand_over(self: &Arc<Self>, pair: PairId, mail: ClientMail) {
        let (mail, outcome) = match self.hub.send(pair, mail) {
            Ok(()) => return,
            Err(Absent::NotHere(mail)) => (mail, Reply::NotHere),
            Err(Absent::Busy(mail)) => (mail, Reply::Failed(super::ask::busy())),
        };
        let (ClientMail::Command { reply, .. } | ClientMail::Yield { reply, .. }) = mail;
        self.reply(reply, outcome);
    }

    /// Begins a command with a key: `None` when it is to be carried out now, else what there is to say of it.
    pub(super) async fn begin(&self, pair: PairId, key: &str) -> Result<Option<Reply>, Failure> {
        match self.registry.begin(pair, key, REMEMBERED).await {
            Ok(Begun::First) => Ok(None),
            Ok(Begun::Running) => Ok(Some(Reply::Again)),
            Ok(Begun::Settled(reply)) => {
                let reply = rmp_serde::from_slice(&reply);
                Ok(Some(
                    reply
                        .map_err(|_| Failure::new(crate::protocol::Fault::Internal, "a reply of another version"))?,
                ))
            }
            Err(error) => {
                // If only the answer was lost, the key would stand for a command that nobody carries out.
                drop(self.registry.settle(pair, key, None, REMEMBERED).await);
                Err(error.into())
            }
        }
    }

    /// What became of a command with a key, when its pair's client socket is not there (any more) to say.
    pub(super) async fn recall(&self, pair: PairId, key: &str) -> Option<Reply> {
        match self.begin(pair, key).await {
            Ok(None) | Err(_) => {
                drop(self.registry.settle(pair, key, None, REMEMBERED).await);
                None
            }
            Ok(known) => known,
        }
    }

    /// Keeps the outcome of a command with a key, or forgets it when it had no effect.
    pub(super) async fn settle(&self, pair: PairId, key: &str, outcome: &Reply) {
        let untouched = match outcome {
            Reply::NotHere | Reply::Again => true,
            Reply::Failed(failure) => failure.fault.retryable(),
            Reply::Done(_) => false,
        };
        let bytes = if untouched { None } else { rmp_serde::to_vec_named(outcome).ok().map(Into::into) };
        for _ in 0..3 {
            match self.registry.settle(pair, key, bytes.clone(), REMEMBERED).await {
                Ok(()) => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
            }
        }
        tracing::warn!(%pair, "the reply to a command could not be kept");
    }

    /// Settles, and replies then.
    pub(super) fn reply_keyed(self: &Arc<Self>, keyed: Keyed, outcome: Reply) {
        let node = Arc::clone(self);
        self.spawn("reply with a key", async move {
            node.settle(keyed.pair, &keyed.key, &outcome).await;
            node.reply(keyed.to, outcome);
        });
    }
}
