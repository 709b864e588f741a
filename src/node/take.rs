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
    ask::{BETWEEN_LOOKS, gone, not_found},
    parting::node_lost,
    story::RETRY,
};
use crate::{
    broker::{BrokerError, Claim, Record},
    protocol::{Failure, Fault, Fence, Mail, NodeId, PairId, Reply},
};

/// How long a socket may take to yield before it is taken for lost.
const YIELD: Duration = Duration::from_secs(2);
/// How long a socket that wants a pair waits, where many others want it too.
const QUEUE: Duration = Duration::from_secs(10);

impl Node {
    /// Takes the pair.
    ///
    /// # Errors
    /// [`Fault::NotFound`], [`Fault::Gone`], [`Fault::Overloaded`] when others were always faster, or when the broker
    /// can't be reached; then nothing is held.
    pub(super) async fn take(self: &Arc<Self>, pair: PairId, facts: &Facts) -> Result<Fence, Failure> {
        self.must_be_leased()?;
        let (nonce, deadline) = (rand::random(), Instant::now() + QUEUE);
        let mut asked: Option<(Fence, Instant)> = None;
        while Instant::now() < deadline {
            let held = match self.registry.claim(pair, self.id, nonce).await {
                Ok(Claim::Won(fence)) => return Ok(fence),
                Ok(Claim::Held(record)) => record,
                Ok(Claim::Ended) => return Err(gone()),
                Ok(Claim::Missing) => return Err(not_found(pair)),
                Err(error) => {
                    self.disclaim(pair, nonce, facts.clone());
                    return Err(error.into());
                }
            };
            let since = asked.filter(|(fence, _)| *fence == held.fence).map_or_else(Instant::now, |(_, since)| since);
            asked = Some((held.fence, since));
            self.have_let_go(pair, &held, since + YIELD).await?;
        }
        Err(Failure::new(Fault::Overloaded, "too many client sockets are opened for this pair at once: try again"))
    }

    /// What a node takes while others bury it would be buried too.
    pub(super) fn must_be_leased(&self) -> Result<(), Failure> {
        let message = "this node lost its lease and is settling that: try again in a moment, or on another node";
        if self.leased() { Ok(()) } else { Err(Failure::new(Fault::BrokerUnavailable, message)) }
    }

    /// Has whoever holds the pair let go of it, or finds that it can't any more.
    async fn have_let_go(&self, pair: PairId, held: &Record, deadline: Instant) -> Result<(), BrokerError> {
        let Some(holder) = held.holder else { return Ok(()) };
        if Instant::now() < deadline {
            if !self.ask_to_yield(holder, pair, held.fence, deadline).await {
                // It is just opening, or closing, or gone.
                sleep(BETWEEN_LOOKS).await;
            }
            return Ok(());
        }
        tracing::warn!(%pair, node = %holder, "a client socket does not yield: it is taken for lost");
        let linger = Facts::read(&held.facts).map_or(self.settings.linger, |facts| facts.linger());
        let last = [node_lost(held.fence)];
        self.registry.release(pair, held.fence, self.id, linger, &last, &self.settings.keep).await?;
        Ok(())
    }

    /// Asks a client socket to yield; true when it has.
    async fn ask_to_yield(&self, node: NodeId, pair: PairId, held: Fence, deadline: Instant) -> bool {
        if node == self.id {
            let (reply, yielded) = oneshot::channel();
            let mail = ClientMail::Yield { held, reply: ReplyTo::Here(reply) };
            let left = self.hub.fence(pair) == Some(held) && self.hub.send(pair, mail).is_ok();
            return left && matches!(timeout_at(deadline, yielded).await, Ok(Ok(Reply::Done(_))));
        }
        let (number, reply) = self.expect_reply();
        let ask = Mail::Yield { number, from: self.id, pair, held };
        matches!(self.post_until_answered(node, &ask, number, reply, deadline).await, Ok(Reply::Done(_)))
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
