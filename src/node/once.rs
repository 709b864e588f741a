//! Commands with a key: carried out once, by whichever sibling on whichever node they are sent again.
//!
//! The node that is about to carry one out notes its key in the registry first, and keeps the reply there after the
//! effect. A command that was refused before it had any effect is forgotten, so that it can be sent again.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{ClientMail, Node, ReplyTo};
use crate::{
    broker::Begun,
    hub::Absent,
    protocol::{Failure, Fault, PairId, Reply},
};

/// How long a key is remembered.
pub(super) const REMEMBERED: Duration = Duration::from_secs(600);

/// Where the reply to a command with a key goes, and what it was.
#[derive(Debug)]
pub struct Keyed {
    pair: PairId,
    key: String,
    command: &'static str,
    to: ReplyTo,
}

/// What is kept under a key.
#[derive(Serialize, Deserialize)]
struct Kept {
    command: String,
    reply: Reply,
}

/// What a command's key is noted under: apart from the gateway's own notes.
fn name(key: &str) -> String {
    format!("key/{key}")
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
                    match node.begin(pair, &key, command.name()).await {
                        Ok(None) => {
                            let keyed = Keyed { pair, key, command: command.name(), to: reply };
                            let reply = ReplyTo::Keyed(Box::new(keyed));
                            node.hand_over(pair, ClientMail::Command { command, cause, reply });
                        }
                        Ok(Some(known)) => node.reply(reply, known),
                        Err(failure) => node.reply(reply, Reply::Failed(failure)),
                    }
                });
            }
            // The one that is here is newer than who asks: it would wait for it in turn, and has nothing to give.
            ClientMail::Yield { to, reply } if self.hub.fence(pair).is_some_and(|here| here.epoch >= to.epoch) => {
                self.reply(reply, Reply::NotHere);
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
        if let ClientMail::Command { reply, .. } | ClientMail::Yield { reply, .. } = mail {
            self.reply(reply, outcome);
        }
    }

    /// Begins a command with a key: `None` when it is to be carried out now, else what there is to say of it.
    pub(super) async fn begin(&self, pair: PairId, key: &str, command: &str) -> Result<Option<Reply>, Failure> {
        match self.registry.begin(pair, &name(key), REMEMBERED).await {
            Ok(Begun::First) => Ok(None),
            Ok(Begun::Running) => Ok(Some(Reply::Again)),
            Ok(Begun::Settled(kept)) => match rmp_serde::from_slice::<Kept>(&kept) {
                Ok(kept) if kept.command == command => Ok(Some(kept.reply)),
                Ok(kept) => {
                    let message = format!("key: it was used for {} already: use another", kept.command);
                    Ok(Some(Reply::Failed(Failure::new(Fault::Conflict, message))))
                }
                Err(_) => Err(Failure::new(Fault::Internal, "a reply of another version")),
            },
            Err(error) => {
                // If only the answer was lost, the key would stand for a command that nobody carries out.
                drop(self.registry.settle(pair, &name(key), None, REMEMBERED).await);
                Err(error.into())
            }
        }
    }

    /// What became of a command with a key, when its pair's client socket is not there (any more) to say.
    pub(super) async fn recall(&self, pair: PairId, key: &str, command: &str) -> Option<Reply> {
        match self.begin(pair, key, command).await {
            Ok(None) | Err(_) => {
                drop(self.registry.settle(pair, &name(key), None, REMEMBERED).await);
                None
            }
            Ok(known) => known,
        }
    }

    /// Keeps the outcome of a command with a key, or forgets it when it had no effect.
    pub(super) async fn settle(&self, pair: PairId, key: &str, command: &str, outcome: &Reply) {
        let untouched = match outcome {
            Reply::NotHere | Reply::Again => true,
            Reply::Failed(failure) => failure.fault.retryable(),
            Reply::Done(_) => false,
        };
        let kept = Kept { command: command.into(), reply: outcome.clone() };
        let bytes = if untouched { None } else { rmp_serde::to_vec_named(&kept).ok().map(Into::into) };
        for _ in 0..3 {
            match self.registry.settle(pair, &name(key), bytes.clone(), REMEMBERED).await {
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
            node.settle(keyed.pair, &keyed.key, keyed.command, &outcome).await;
            node.reply(keyed.to, outcome);
        });
    }
}
