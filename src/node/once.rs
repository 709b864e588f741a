//! Commands with a key: carried out once, by whichever sibling on whichever node they are sent again.
//!
//! The node that is about to carry one out notes its key in the registry first, and keeps the reply there after the
//! effect. A command that was refused before it had any effect is forgotten, so that it can be sent again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    ClientMail, Node, ReplyTo,
    ask::{BETWEEN_LOOKS, timed_out},
    asked::Heard,
    story::RETRY,
};
use crate::{
    broker::Begun,
    hub::Absent,
    protocol::{Failure, Fault, PairId, Reply},
};

/// How often a key is tried to be settled while the broker fails. Its note goes by itself in the end.
const TRIES: u32 = 40;

/// How long a command with a key is remembered here as well: for as long as a fail-over of the broker may take.
const REMEMBERED_HERE: Duration = Duration::from_secs(60);

/// Where the reply to a command with a key goes, and what it was.
#[derive(Debug)]
pub struct Keyed {
    pair: PairId,
    key: String,
    token: u64,
    command: &'static str,
    to: ReplyTo,
}

/// What a command with a key is remembered by on this node.
pub(super) type Name = (PairId, String, &'static str);

/// What is kept under a key.
#[derive(Serialize, Deserialize)]
struct Kept {
    command: String,
    reply: Reply,
}

/// What a command with a key is to do.
pub(super) enum Once {
    /// Carry it out, and settle it with this token.
    Now(u64),
    /// Say this.
    Known(Reply),
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
                        Ok(Once::Now(token)) => {
                            let known = node.keyed.hear((pair, key.clone(), command.name()), REMEMBERED_HERE);
                            let keyed = Keyed { pair, key, token, command: command.name(), to: reply };
                            match known {
                                Heard::First | Heard::TooMany => {
                                    let reply = ReplyTo::Keyed(Box::new(keyed));
                                    node.hand_over(pair, ClientMail::Command { command, cause, reply });
                                }
                                // The note of the first time was lost.
                                Heard::Running => node.settle_and_reply(keyed, Reply::Again),
                                Heard::Replied(first) => node.reply_keyed(keyed, first),
                            }
                        }
                        Ok(Once::Known(known)) => node.reply(reply, known),
                        Err(failure) => node.reply(reply, Reply::Failed(failure)),
                    }
                });
            }
            // Only the very socket that is asked to yield has something to give.
            ClientMail::Yield { held, reply } if self.hub.fence(pair) != Some(held) => {
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

    /// Begins a command with a key, unless it was begun before.
    pub(super) async fn begin(self: &Arc<Self>, pair: PairId, key: &str, command: &str) -> Result<Once, Failure> {
        let (token, deadline) = (rand::random(), Instant::now() + self.settings.command_timeout / 2);
        loop {
            match self.registry.begin(pair, key, token, self.settings.key_memory).await {
                Ok(Begun::First) => return Ok(Once::Now(token)),
                Ok(begun) => return said(begun, command).map(Once::Known),
                Err(_) if Instant::now() < deadline => sleep(RETRY).await,
                Err(error) => {
                    // It may have been noted all the same, for a command that nobody carries out.
                    self.take_back(pair, key, token);
                    return Err(error.into());
                }
            }
        }
    }

    /// Takes a note back that may have been made, when nothing was done under it.
    fn take_back(self: &Arc<Self>, pair: PairId, key: &str, token: u64) {
        let (node, key) = (Arc::clone(self), key.to_owned());
        self.spawn("take back a key", async move {
            // What can't be taken back goes by itself.
            node.settle_in_the_end(pair, &key, token, None).await;
        });
    }

    /// Settles a key, trying again while the broker fails. False when that took too long.
    async fn settle_in_the_end(&self, pair: PairId, key: &str, token: u64, kept: Option<Bytes>) -> bool {
        for _ in 0..TRIES {
            let settled = self.registry.settle(pair, key, token, kept.clone(), self.settings.key_memory).await;
            if settled.is_ok() {
                return true;
            }
            if self.stopped.run_until_cancelled(sleep(RETRY)).await.is_none() {
                break;
            }
        }
        false
    }

    /// Carries out a command that no client socket has to: once, if it has a key, whoever sends it again.
    ///
    /// # Errors
    /// What `work` fails with, now or the first time; [`Fault::Timeout`] when another is at it for too long.
    pub async fn once(
        self: &Arc<Self>,
        pair: PairId,
        key: Option<String>,
        command: &'static str,
        work: impl Future<Output = Result<Value, Failure>> + Send + 'static,
    ) -> Result<Value, Failure> {
        self.once_unless(pair, key, command, had_no_effect, work).await
    }

    /// The same for a command that has more or fewer outcomes without an effect, after which it may be sent again.
    pub(super) async fn once_unless(
        self: &Arc<Self>,
        pair: PairId,
        key: Option<String>,
        command: &'static str,
        had_no_effect: fn(&Reply) -> bool,
        work: impl Future<Output = Result<Value, Failure>> + Send + 'static,
    ) -> Result<Value, Failure> {
        let Some(key) = key else { return work.await };
        let deadline = Instant::now() + self.settings.command_timeout;
        let token = loop {
            match self.begin(pair, &key, command).await? {
                Once::Now(token) => break token,
                Once::Known(Reply::Done(result)) => return Ok(result),
                Once::Known(Reply::Failed(failure)) => return Err(failure),
                Once::Known(Reply::Again | Reply::NotHere) if Instant::now() < deadline => sleep(BETWEEN_LOOKS).await,
                Once::Known(Reply::Again | Reply::NotHere) => return Err(timed_out()),
            }
        };
        let node = Arc::clone(self);
        self.to_the_end(command, async move {
            let outcome = work.await;
            let reply = outcome.clone().map_or_else(Reply::Failed, Reply::Done);
            // Of what is unknown nothing is said, so that it is not done twice.
            if !is_unknown(&reply) || had_no_effect(&reply) {
                node.settle(pair, &key, token, command, &reply).await;
            }
            outcome
        })
        .await
    }

    /// What became of a command with a key, when its pair's client socket is not there (any more) to say; `None` when
    /// it was not begun.
    pub(super) async fn recall(&self, pair: PairId, key: &str, command: &str) -> Result<Option<Reply>, Failure> {
        let begun = self.registry.begun(pair, key).await?;
        begun.map(|begun| said(begun, command)).transpose()
    }

    /// Keeps the outcome of a command with a key, or forgets it when it had no effect.
    pub(super) async fn settle(&self, pair: PairId, key: &str, token: u64, command: &str, outcome: &Reply) {
        let kept = Kept { command: command.into(), reply: outcome.clone() };
        let bytes = if had_no_effect(outcome) { None } else { rmp_serde::to_vec_named(&kept).ok().map(Into::into) };
        if !self.settle_in_the_end(pair, key, token, bytes).await {
            tracing::warn!(%pair, "the reply to a command could not be kept");
        }
    }

    /// A command with a key was carried out, or had no effect: settles it, and replies then.
    pub(super) fn reply_keyed(self: &Arc<Self>, keyed: Keyed, outcome: Reply) {
        let name = (keyed.pair, keyed.key.clone(), keyed.command);
        match had_no_effect(&outcome) {
            true => self.keyed.forget(&name),
            false => self.keyed.replied(&name, &outcome),
        }
        self.settle_and_reply(keyed, outcome);
    }

    fn settle_and_reply(self: &Arc<Self>, keyed: Keyed, outcome: Reply) {
        let node = Arc::clone(self);
        self.spawn("reply with a key", async move {
            node.settle(keyed.pair, &keyed.key, keyed.token, keyed.command, &outcome).await;
            node.reply(keyed.to, outcome);
        });
    }
}

fn is_unknown(outcome: &Reply) -> bool {
    matches!(outcome, Reply::Failed(failure) if failure.fault == Fault::Timeout)
}

/// Whether a command that can't be done halfway is known not to have been done.
pub(super) fn was_not_done(outcome: &Reply) -> bool {
    had_no_effect(outcome) && !is_unknown(outcome)
}

fn had_no_effect(outcome: &Reply) -> bool {
    match outcome {
        Reply::NotHere | Reply::Again => true,
        Reply::Failed(failure) => failure.fault.retryable(),
        Reply::Done(_) => false,
    }
}

/// What is to be said of a command that was begun before.
fn said(begun: Begun, command: &str) -> Result<Reply, Failure> {
    let Begun::Settled(kept) = begun else { return Ok(Reply::Again) };
    match rmp_serde::from_slice::<Kept>(&kept) {
        Ok(kept) if kept.command == command => Ok(kept.reply),
        Ok(kept) => {
            let message = format!("key: it was used for {} already: use another", kept.command);
            Ok(Reply::Failed(Failure::new(Fault::Conflict, message)))
        }
        Err(_) => Err(Failure::new(Fault::Internal, "a reply of another version")),
    }
}
