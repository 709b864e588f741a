//! The load: pairs in rooms, each with an agent at its client socket and one at its sibling.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::agent::{Agent, Phase, Style, Wish};
use super::attendant::Attendant;
use super::record::{Book, Ms, Page, Promises, now};
use super::stage::Stage;
use crate::support::{Pair, is_kept};

/// Members of a room.
const ROOM: usize = 8;
/// How long all may take to be served again after a fault. A machine that others use is slow.
pub const HEALING: Duration = Duration::from_secs(60);

/// The agents under load.
pub struct Load {
    pub agents: Vec<Arc<Agent>>,
    wishes: Vec<mpsc::UnboundedSender<Wish>>,
    phase: watch::Sender<Phase>,
    tasks: JoinSet<()>,
}

/// How long each pair took to be served again, who was the slowest and why, and who was not served at all.
pub struct Recovery {
    pub times: Vec<Ms>,
    pub slowest: String,
    pub missing: Vec<String>,
}

impl Load {
    pub async fn start(stage: &Stage, pairs: usize, style: Style, promises: Promises) -> Self {
        let (phase, seen) = watch::channel(Phase::Load);
        let made = stream::iter(0..pairs).map(async |number| {
            let mut rooms = vec![format!("hall-{}", number / ROOM)];
            if number % (2 * ROOM) == 5 {
                rooms.push(format!("attic-{}", number / (8 * ROOM)));
            }
            let pair = Pair::make(&stage.nodes[number % stage.nodes.len()], &rooms[0], "text").await;
            let page = Page { pair: pair.id.clone(), rooms, ..Page::default() };
            Arc::new(Agent {
                number,
                pair,
                page: Mutex::new(page),
                field: Arc::clone(&stage.field),
                style,
                promises,
                phase: seen.clone(),
                done: AtomicBool::new(false),
                next_frame: AtomicU64::new(1),
                home: Mutex::new(None),
                cuts: Mutex::new(Vec::new()),
            })
        });
        let agents: Vec<_> = made.buffered(8).collect().await;
        let (mut tasks, mut wishes) = (JoinSet::new(), Vec::new());
        for agent in &agents {
            let (wish, wished) = mpsc::unbounded_channel();
            wishes.push(wish);
            tasks.spawn(Arc::clone(agent).keep_open(wished));
            tasks.spawn(Attendant::of(Arc::clone(agent)).attend());
        }
        let load = Self { agents, wishes, phase, tasks };
        let start = load.recovered(now()).await;
        assert!(start.missing.is_empty(), "the load never came up: {:#?}", start.missing);
        load
    }

    /// Waits until every pair was answered a command that was sent, and heard an event that was raised, after `since`.
    pub async fn recovered(&self, since: Ms) -> Recovery {
        let deadline = Instant::now() + HEALING;
        loop {
            let times: Vec<_> = self.agents.iter().map(|agent| served_after(&agent.page(), since)).collect();
            if times.iter().all(Option::is_some) || Instant::now() > deadline {
                let missing = self.agents.iter().zip(&times).filter(|(_, time)| time.is_none());
                let missing = missing.map(|(agent, _)| describe(agent)).collect();
                let slowest = (0..times.len()).max_by_key(|at| times[*at]).expect("there are pairs");
                let slowest = retrace(&self.agents[slowest], since);
                return Recovery { times: times.into_iter().flatten().collect(), slowest, missing };
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Wishes something of every agent.
    pub fn wish(&self, wish: Wish) {
        for to in &self.wishes {
            // Its agent is there until the end.
            let _ = to.send(wish);
        }
    }

    /// Wishes something of every `nth` agent.
    pub fn wish_of_some(&self, nth: usize, wish: Wish) {
        for to in self.wishes.iter().step_by(nth) {
            // Its agent is there until the end.
            let _ = to.send(wish);
        }
    }

    /// Has the open commands answered and a last one given, and then stops the frames. Returns who did not get there.
    pub async fn finish(&self) -> Vec<String> {
        self.phase.send_replace(Phase::Finish);
        let deadline = Instant::now() + HEALING;
        let unfinished = loop {
            let left: Vec<_> = self.agents.iter().filter(|agent| !agent.done.load(Relaxed)).collect();
            if left.is_empty() || Instant::now() > deadline {
                break left.into_iter().map(describe).collect();
            }
            sleep(Duration::from_millis(50)).await;
        };
        self.phase.send_replace(Phase::Quiet);
        unfinished
    }

    /// From here on sockets may end.
    pub fn over(&self) {
        self.phase.send_replace(Phase::Over);
    }

    /// What was recorded so far.
    pub fn copy(&self, stage: &Stage, promises: Promises) -> Book {
        let pages = self.agents.iter().map(|agent| agent.page().clone()).collect();
        Book { promises, harmed: stage.field.harmed(), names: stage.field.names(), pages }
    }

    /// Ends all agents.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// How long after `since` a pair was served in full.
fn served_after(page: &Page, since: Ms) -> Option<Ms> {
    let answered = page.orders.iter().rev().take_while(|order| order.last_sent >= since);
    let answered = answered.filter_map(|order| order.answer.as_ref().filter(|(_, answer)| answer.is_ok()));
    let answered = answered.map(|(at, _)| *at).min()?;
    let heard = page.heard.iter().rev().take_while(|heard| heard.when >= since);
    let heard = heard.filter(|heard| heard.said >= since && is_kept(&heard.params)).map(|heard| heard.when).min()?;
    Some(answered.max(heard) - since)
}

/// How a pair stands, for whoever must find out why it is not served.
fn describe(agent: &Arc<Agent>) -> String {
    let page = agent.page();
    let open: Vec<_> = page.pipes.iter().filter(|pipe| pipe.ended.is_none()).map(|pipe| pipe.node).collect();
    let last = page.orders.last().map(|order| (&order.key, order.attempts, &order.unsure, order.answer.is_some()));
    let heard = page.heard.last().map(|heard| (now() - heard.when, &heard.params["type"]));
    format!(
        "pair {} ({}): open at {open:?}, last command {last:?}, last heard (ms ago) {heard:?}",
        agent.number, page.pair
    )
}

/// What a pair did after `since`, in milliseconds from there.
fn retrace(agent: &Agent, since: Ms) -> String {
    let page = agent.page();
    let from = |at: Ms| i128::from(at) - i128::from(since);
    let mut text = format!("pair {} ({})", agent.number, page.pair);
    for pipe in page.pipes.iter().filter(|pipe| pipe.ended.as_ref().is_none_or(|(at, ..)| *at >= since)) {
        let ended = pipe.ended.as_ref().map(|(at, closed, _)| (from(*at), closed.code));
        let _ = write!(text, "; pipe opened {}, ended {ended:?}", from(pipe.opened));
    }
    let orders = page.orders.iter().filter(|order| order.answer.as_ref().is_none_or(|(at, _)| *at >= since));
    for order in orders.take(4) {
        let answered = order.answer.as_ref().map(|(at, answer)| (from(*at), answer.is_ok()));
        let (first, last, attempts) = (from(order.first_sent), from(order.last_sent), order.attempts);
        let unsure = order.unsure.as_ref().map(|error| &error["code"]);
        let _ = write!(
            text,
            "; {:?} sent {first}, last {last} ({attempts} attempts, unsure {unsure:?}), answered {answered:?}",
            order.act
        );
    }
    let heard = page.heard.iter().find(|heard| heard.when >= since && heard.said >= since);
    let _ = write!(text, "; heard {:?}", heard.map(|heard| (from(heard.when), &heard.params["type"])));
    text
}
