//! Signals: what agents tell each other's siblings.
//!
//! A signal is one entry: of the room's talk, or of the history of the pair that it is for. It names the node that asks
//! to how many listeners it is told. The broker says how many nodes it is on its way to, and each of these answers with
//! the listeners that it has for it, so that the sum is what happened and no guess.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use dashmap::DashMap;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep, timeout_at},
};

use super::{
    Found, Node,
    ask::timed_out,
    once::was_not_done,
    story::{RETRY, draft_with},
};
use crate::{
    broker::{Appended, Draft},
    protocol::{
        Cause, Event, EventKind, Failure, Fault, Mail, NodeId, PairId, Reply, SignalId, SignalParams, SignalTo,
        Topic, Unsaid,
    },
};

/// How long the nodes that a signal has reached are waited for.
const ANSWERS: Duration = Duration::from_secs(1);
/// How many answers may wait: more nodes than anybody has.
const MAILBOX: usize = 1_024;

/// Where answers go, by the numbers of their signals.
pub(super) type Tallies = DashMap<u64, mpsc::Sender<(NodeId, u64)>>;

/// A number that is waited for; dropped, it is not any more.
struct Tally<'a> {
    node: &'a Node,
    number: u64,
    answers: mpsc::Receiver<(NodeId, u64)>,
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.node.tallies.remove(&self.number);
    }
}

impl Tally<'_> {
    /// To how many the signal was told, over `nodes`. One that answers again says the same.
    async fn sum(&mut self, nodes: u64) -> u64 {
        let (until, mut told) = (Instant::now() + ANSWERS, std::collections::HashMap::new());
        while (told.len() as u64) < nodes
            && let Ok(Some((node, count))) = timeout_at(until, self.answers.recv()).await
        {
            told.insert(node, count);
        }
        told.values().sum()
    }
}

impl Node {
    /// Signals something to the others in a pair's room, or to one of them: once, if it has a key.
    ///
    /// # Errors
    /// [`Fault::NotFound`] when the pair that it is for is not in the room, [`Fault::Gone`] after the sender's end,
    /// [`Fault::Timeout`], or when the broker can't be reached.
    pub async fn signal(
        self: &Arc<Self>,
        pair: PairId,
        params: SignalParams,
        cause: Cause,
    ) -> Result<Value, Failure> {
        let (node, key) = (Arc::clone(self), cause.key.clone());
        let work = async move { node.signal_now(pair, params, cause).await };
        self.once_unless(pair, key, "room.signal", was_not_done, work).await
    }

    async fn signal_now(&self, pair: PairId, params: SignalParams, cause: Cause) -> Result<Value, Failure> {
        let SignalParams { to, data, reply_to } = params;
        let other = async {
            match to {
                SignalTo::Room => Ok(None),
                SignalTo::Pair(other) => self.registry.look_up(other).await.map_err(Failure::from),
            }
        };
        let (Found { facts, .. }, other) = tokio::try_join!(self.find_pair(pair), other)?;
        if let SignalTo::Pair(to) = to {
            // Where somebody else is, is nobody's business: it is not here.
            let here = other.filter(|record| !record.ended).and_then(|record| super::Facts::read(&record.facts));
            if here.is_none_or(|other| other.room != facts.room) {
                return Err(not_here(to));
            }
        }
        let id = SignalId::fresh();
        let mut said = json!({"id": id, "from": pair, "to": to, "data": data});
        if let Some(reply_to) = reply_to {
            said["reply_to"] = reply_to.into();
        }
        let (sender, answers) = mpsc::channel(MAILBOX);
        let number = self.numbers.fetch_add(1, Relaxed);
        self.tallies.insert(number, sender);
        let mut tally = Tally { node: self, number, answers };
        let of = (to == SignalTo::Room).then(|| pair.uuid());
        let unsaid = Unsaid { of, count: Some((self.id, number)), stand: None };
        let draft = draft_with(EventKind::Signal, said, Some(cause), Some(Box::new(unsaid)));
        let topic = match to {
            SignalTo::Room => Topic::Talk(facts.room),
            SignalTo::Pair(other) => Topic::Pair(other),
        };
        let reached = self.append_signal(&topic, draft).await?;
        Ok(json!({"delivered": tally.sum(reached).await, "id": id}))
    }

    /// Appends it, trying again while the answer is lost; how many nodes it has reached.
    async fn append_signal(&self, topic: &Topic, draft: Draft) -> Result<u64, Failure> {
        let (until, drafts) = (Instant::now() + self.settings.command_timeout / 2, [draft]);
        let keep = &self.settings.keep;
        let mut tried = false;
        loop {
            let appended = match topic {
                Topic::Pair(pair) => self.registry.tell(*pair, &drafts, keep).await,
                topic => self.broker.append(topic, None, &drafts, keep).await,
            };
            match (appended, topic) {
                (Ok(Appended::At(_, reached)), _) => return Ok(reached),
                (Ok(_), Topic::Pair(pair)) => return Err(not_here(*pair)),
                (Ok(_), _) => return Err(Failure::new(Fault::Internal, "a room's talk takes whatever is told")),
                (Err(error), _) if !tried && !error.is_unknown() => return Err(error.into()),
                (Err(_), _) if Instant::now() >= until => return Err(timed_out()),
                (Err(_), _) => sleep(RETRY).await,
            }
            tried = true;
        }
    }

    /// Answers whoever wants to know to how many listeners here an event is told.
    pub(super) fn answer_count(self: &Arc<Self>, topic: &Topic, event: &Event) {
        let Some(unsaid) = &event.unsaid else { return };
        let Some((asker, number)) = unsaid.count else { return };
        let told = self.hub.count(topic, |ear| match topic {
            Topic::Talk(_) => ear.hears_signals() && unsaid.of != Some(ear.pair.uuid()),
            _ => true,
        });
        if asker == self.id {
            self.count_answer(number, self.id, told);
        } else {
            let outcome = Reply::Done(json!({"node": self.id, "told": told}));
            self.post(asker, &Mail::Reply { number, outcome });
        }
    }

    /// A node's answer to a signal arrived.
    pub(super) fn counted_there(&self, number: u64, outcome: &Reply) {
        if let Reply::Done(said) = outcome
            && let Some(node) = said["node"].as_str().and_then(|node| node.parse().ok())
        {
            self.count_answer(number, node, said["told"].as_u64().unwrap_or_default());
        }
    }

    fn count_answer(&self, number: u64, node: NodeId, told: u64) {
        if let Some(answers) = self.tallies.get(&number) {
            // It fails when nobody waits any more, or for far more than there are.
            let _ = answers.try_send((node, told));
        }
    }
}

fn not_here(pair: PairId) -> Failure {
    Failure::new(Fault::NotFound, format!("{pair} is not in this room: room.members lists who is"))
}
