//! Taking a pair for a new client socket, from whoever has it.
//!
//! Nobody is pushed aside in the registry: the socket that has the pair is asked to yield, closes, and gives the pair
//! up together with its last event. Only one whose node does not answer is declared lost, by whoever wants its place.
//! So the sockets of a pair come one after the other, and the story tells each one's end before the next one's begin.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use super::{
    ClientMail, Facts, Node, Parting, ReplyTo,
    ask::{BETWEEN_LOOKS, gone},
    story::RETRY,
};
use crate::{
    broker::{BrokerError, Claim, Record},
    protocol::{Failure, Fault, Fence, Mail, NodeId, PairId, Reply},
};

/// How long the node of a socket that is asked to yield may be silent before the socket is taken for lost.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a socket may take to yield although its node answers.
const YIELD: Duration = Duration::from_secs(10);
/// How long a socket that wants a pair waits, where many others want it too.
const QUEUE: Duration = Duration::from_secs(20);

/// How long a client socket that has the pair is still waited for.
#[derive(Default)]
struct Patience {
    held: Option<Fence>,
    silent_since: Option<Instant>,
    asked_since: Option<Instant>,
}

impl Patience {
    /// Until when this one is waited for; `None` when it was for long enough.
    fn with(&mut self, held: Fence) -> Option<Instant> {
        let now = Instant::now();
        if self.held != Some(held) {
            *self = Self { held: Some(held), silent_since: Some(now), asked_since: Some(now) };
        }
        let until = (self.silent_since? + SILENCE).min(self.asked_since? + YIELD);
        (now < until).then_some(until)
    }

    fn answered(&mut self) {
        self.silent_since = Some(Instant::now());
    }
}

impl Node {
    /// Takes the pair.
    ///
    /// # Errors
    /// [`Fault::NotFound`], [`Fault::Gone`], [`Fault::Overloaded`] when others were always faster, or when the broker
    /// can't be reached; then nothing is held.
    pub(super) async fn take(self: &Arc<Self>, pair: PairId, facts: &Facts) -> Result<Fence, Failure> {
        let term = self.term().ok_or_else(unleased)?;
        let deadline = Instant::now() + QUEUE;
        let mut patience = Patience::default();
        while Instant::now() < deadline && !self.draining.is_cancelled() {
            // What an earlier attempt has noted is being struck.
            let nonce = rand::random();
            let held = match self.registry.claim(pair, self.id, nonce).await {
                Ok(Claim::Won(fence)) if self.term() == Some(term) => return Ok(fence),
                Ok(Claim::Won(fence)) => {
                    drop(self.part(Parting::unheard(pair, fence, facts.clone())));
                    return Err(unleased());
                }
                Ok(Claim::Held(record)) => record,
                Ok(Claim::Ended) => return Err(gone()),
                Ok(Claim::Missing) => return Err(self.unknown(pair)),
                Err(error) => {
                    self.disclaim(pair, nonce, facts.clone());
                    return Err(error.into());
                }
            };
            self.have_let_go(pair, &held, &mut patience).await?;
        }
        if self.draining.is_cancelled() {
            return Err(Failure::new(Fault::Draining, "the node is draining: come back, another one answers"));
        }
        Err(Failure::new(Fault::Overloaded, "too many client sockets are opened for this pair at once: try again"))
    }

    /// What a node takes while others bury it would be buried too.
    ///
    /// # Errors
    /// [`Fault::BrokerUnavailable`] while it has no lease.
    pub fn must_be_leased(&self) -> Result<(), Failure> {
        if self.leased() { Ok(()) } else { Err(unleased()) }
    }

    /// Has whoever holds the pair let go of it, or finds that it can't any more.
    async fn have_let_go(&self, pair: PairId, held: &Record, patience: &mut Patience) -> Result<(), BrokerError> {
        let Some(holder) = held.holder else { return Ok(()) };
        let Some(until) = patience.with(held.fence) else {
            tracing::warn!(%pair, node = %holder, "a client socket does not yield: it is taken for lost");
            return self.take_for_lost(pair, held).await;
        };
        match self.ask_to_yield(holder, pair, held.fence, until).await {
            Some(Reply::Done(_)) => {}
            // It is just opening or closing, or slow, on a node that lives.
            Some(_) => {
                patience.answered();
                sleep(BETWEEN_LOOKS).await;
            }
            None => sleep(BETWEEN_LOOKS).await,
        }
        Ok(())
    }

    /// Asks a client socket to yield; nothing is returned when its node is silent.
    async fn ask_to_yield(&self, node: NodeId, pair: PairId, held: Fence, until: Instant) -> Option<Reply> {
        if node == self.id {
            let (reply, yielded) = oneshot::channel();
            let mail = ClientMail::Yield { held, reply: ReplyTo::Here(reply) };
            if self.hub.fence(pair) != Some(held) || self.hub.send(pair, mail).is_err() {
                return Some(Reply::NotHere);
            }
            let reply =
                timeout_at(until, yielded).await.map_or(Reply::Again, |reply| reply.unwrap_or(Reply::NotHere));
            return Some(reply);
        }
        let (number, reply) = self.expect_reply();
        let ask = Mail::Yield { number, from: self.id, pair, held };
        self.post_until_answered(node, &ask, number, reply, until).await.ok()
    }

    /// The answer to a claim was lost: if it was won, nobody serves it, and it is given up.
    fn disclaim(self: &Arc<Self>, pair: PairId, nonce: u64, facts: Facts) {
        let node = Arc::clone(self);
        self.spawn("disclaim", async move {
            let record = loop {
                match node.registry.look_up(pair).await {
                    Ok(record) => break record,
                    Err(_) if node.stopped.is_cancelled() => return,
                    Err(_) => drop(tokio::time::timeout(RETRY, node.stopped.cancelled()).await),
                }
            };
            if let Some(record) = record.filter(|r| r.holder == Some(node.id) && r.fence.nonce == nonce) {
                drop(node.part(Parting::unheard(pair, record.fence, facts)));
            }
        });
    }
}

fn unleased() -> Failure {
    let message = "this node lost its lease and is settling that: try again in a moment, or on another node";
    Failure::new(Fault::BrokerUnavailable, message)
}
