//! An agent's sibling: it always comes back with its last cursor, sometimes sleeps, and always has a command in flight.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::agent::{Agent, Phase};
use super::field::{Refused, back_off, dial, jitter, post};
use super::record::{Act, Heard, Link, Ms, Order, now, said_at};
use crate::support::{Ws, closed_of, is_kept, kind_of};

/// A reply that does not come within this is given up, with its connection: longer than the gateway's own limit.
const REPLY: Duration = Duration::from_secs(8);
/// The code of an answer that leaves it open whether a command took effect.
const TIMEOUT: i64 = -32_008;
/// An agent that is told nothing else for so long goes on with another command, in milliseconds.
const GIVE_UP: Ms = 20_000;
/// A sibling that says goodbye hears on for so long at most.
const FAREWELL: Duration = Duration::from_secs(3);

/// What all pairs do over and over; each begins at another place.
const ROUND: &[Act] = &[Act::Set, Act::Pause, Act::Push, Act::Resume, Act::Push];
/// And those that also move.
const MOVERS: &[Act] = &[Act::Set, Act::Move, Act::Push, Act::Pause, Act::Move, Act::Resume];

/// The sibling of one agent.
pub struct Attendant {
    agent: Arc<Agent>,
    /// The cursor of the last event of any kind that was heard.
    cursor: String,
    act_at: Instant,
    /// The command that waits for its answer, and whether that attempt is still on its way.
    open: Option<usize>,
    sent: bool,
    step: usize,
    paused: bool,
    /// The key of the very last command.
    last: Option<String>,
    by_http: Option<BoxFuture<'static, Option<Value>>>,
}

/// How a stay on one connection ended.
enum Stay {
    Closed,
    /// By the sibling's own wish; for how long it sleeps.
    Left(Duration),
}

impl Attendant {
    pub fn of(agent: Arc<Agent>) -> Self {
        let act_at = Instant::now() + agent.style.orders_every.mul_f64(rand::random::<f64>() * 2.0);
        let step = agent.number;
        let (cursor, open, sent, paused) = ("start".to_owned(), None, false, false);
        Self { agent, cursor, act_at, open, sent, step, paused, last: None, by_http: None }
    }

    /// Attends until the run is over.
    pub async fn attend(mut self) {
        let mut failures = 0_u32;
        while self.agent.phase() < Phase::Over {
            // Mostly on another node than the client.
            let not = if rand::random_bool(0.85) { self.agent.home() } else { None };
            let Some(node) = self.agent.field.pick(not) else { continue };
            let path = format!("{}?cursor={}", self.agent.pair.path("/sibling"), self.cursor);
            match dial(node, &path, &self.agent.pair.sibling_ticket, Some("siblings.v1.json")).await {
                Ok(ws) => {
                    failures = 0;
                    let link = {
                        let mut page = self.agent.page();
                        page.links.push(Link { node, warned: false, ended: None });
                        page.links.len() - 1
                    };
                    let stay = self.stay(ws, link).await;
                    if self.sent && self.by_http.is_none() {
                        // Its reply went down with the connection: it is sent again on the next one, at once.
                        (self.sent, self.act_at) = (false, Instant::now());
                    }
                    match stay {
                        Stay::Left(nap) => sleep(nap).await,
                        Stay::Closed => sleep(jitter(20..250)).await,
                    }
                    continue;
                }
                Err(Refused::With(status, body)) => {
                    let not_now = matches!(status, 409 | 429 | 500 | 503 | 504);
                    if !not_now && self.agent.promises.histories && self.agent.phase() < Phase::Over {
                        self.agent.odd(format!("a sibling was refused for good: {status} {body}"));
                    }
                }
                Err(Refused::Unreachable) => {}
            }
            failures += 1;
            sleep(back_off(failures)).await;
        }
    }

    async fn stay(&mut self, ws: Ws, link: usize) -> Stay {
        let (mut sink, mut stream) = ws.split();
        let leave_at = Instant::now() + jitter(4_000..25_000);
        let mut phase = self.agent.phase.clone();
        let mut closed = None;
        loop {
            let naps = *phase.borrow_and_update() == Phase::Load;
            let may_act = closed.is_none() && self.by_http.is_none() && self.wants_to_act();
            tokio::select! {
                message = stream.next() => match message {
                    Some(Ok(Message::Text(text))) => self.hear(&text, link),
                    Some(Ok(Message::Close(frame))) => closed = Some(closed_of(frame.as_ref())),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => {
                        self.agent.page().links[link].ended = Some(closed.unwrap_or(closed_of(None)));
                        return Stay::Closed;
                    }
                },
                () = sleep_until(self.act_at), if may_act => {
                    if self.sent {
                        // No reply in time: an agent tries another connection.
                        return Stay::Closed;
                    }
                    self.act(&mut sink).await;
                }
                answer = wait_for(&mut self.by_http), if self.by_http.is_some() => {
                    self.by_http = None;
                    self.answered(answer);
                }
                () = sleep_until(leave_at), if naps && closed.is_none() => {
                    self.part(sink, stream, link).await;
                    return Stay::Left(jitter(0..2_000));
                }
                _ = phase.changed() => {
                    if *phase.borrow() == Phase::Over {
                        return Stay::Left(Duration::ZERO);
                    }
                }
            }
        }
    }

    /// Says goodbye; what arrives meanwhile counts as heard.
    async fn part(&mut self, mut sink: SplitSink<Ws, Message>, mut stream: SplitStream<Ws>, link: usize) {
        drop(timeout(FAREWELL, sink.send(Message::Close(None))).await);
        drop(
            timeout(FAREWELL, async {
                while let Some(Ok(message)) = stream.next().await {
                    if let Message::Text(text) = message {
                        self.hear(&text, link);
                    }
                }
            })
            .await,
        );
    }

    fn hear(&mut self, text: &str, link: usize) {
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            return self.agent.odd(format!("a sibling heard no JSON: {text:.80}"));
        };
        if message["method"] != "event" {
            return self.answered(Some(message));
        }
        let params = message["params"].clone();
        if let Some(cursor) = params["cursor"].as_str() {
            self.cursor = cursor.to_owned();
        }
        let ends = self.last.is_some() && params["cause"]["key"].as_str() == self.last.as_deref();
        let mut page = self.agent.page();
        match kind_of(&params) {
            "ready" => {
                if let Some(name) = params["data"]["node"].as_str() {
                    self.agent.field.name(page.links[link].node, name);
                }
            }
            "node.draining" => page.links[link].warned = true,
            kind if kind == "gap" || is_kept(&params) => {
                page.heard.push(Heard { when: now(), said: said_at(&params), params });
            }
            _ => {}
        }
        if ends {
            self.agent.done.store(true, Relaxed);
        }
    }

    /// Whether there is a command to give, now or later.
    fn wants_to_act(&self) -> bool {
        self.open.is_some() || self.last.is_none()
    }

    /// Gives the next command, or the open one once more.
    async fn act(&mut self, sink: &mut SplitSink<Ws, Message>) {
        let at = self.open.unwrap_or_else(|| self.next_order());
        self.open = Some(at);
        let message = {
            let mut page = self.agent.page();
            let order = &mut page.orders[at];
            order.last_sent = now();
            order.attempts += 1;
            let (id, params) = (at as u64 * 1_000 + u64::from(order.attempts), order.params.clone());
            json!({"jsonrpc": "2.0", "id": id, "method": method_of(order.act), "params": params})
        };
        (self.sent, self.act_at) = (true, Instant::now() + REPLY);
        if self.agent.number % 5 == 2 {
            let agent = Arc::clone(&self.agent);
            self.by_http = Some(Box::pin(async move {
                let node = agent.field.pick(None)?;
                let path = agent.pair.path("/commands");
                let reply = post(node, &path, &agent.pair.sibling_ticket, &message).await?;
                if reply.status == 200 { serde_json::from_slice(&reply.body).ok() } else { None }
            }));
        } else {
            // A break is found by reading.
            drop(timeout(REPLY, sink.send(Message::text(message.to_string()))).await);
        }
    }

    fn next_order(&mut self) -> usize {
        let agent = Arc::clone(&self.agent);
        let mut page = agent.page();
        let number = page.orders.len();
        let acts = if page.rooms.len() > 1 { MOVERS } else { ROUND };
        let act = if agent.phase() == Phase::Load {
            self.step += 1;
            acts[self.step % acts.len()]
        } else if self.paused {
            Act::Resume
        } else {
            Act::Set
        };
        let mut key = format!("key-{}-{number}", agent.number);
        if act == Act::Set && agent.phase() > Phase::Load {
            key += "-last";
            self.last = Some(key.clone());
        }
        let mut params = match act {
            Act::Set => json!({"meta": {"n": number}}),
            Act::Pause => json!({"direction": "out", "policy": "buffer"}),
            Act::Resume => json!({"direction": "out"}),
            Act::Move => {
                let moves = page.orders.iter().filter(|order| order.act == Act::Move).count();
                json!({"room": page.rooms[(moves + 1) % page.rooms.len()]})
            }
            Act::Push => json!({"text": format!("p {} {number}", agent.number)}),
        };
        params["key"] = json!(key);
        let sent = now();
        page.orders.push(Order {
            act,
            key,
            params,
            first_sent: sent,
            last_sent: sent,
            attempts: 0,
            unsure: None,
            answer: None,
            again: Vec::new(),
            given_up: false,
        });
        number
    }

    /// A reply came, or the attempt over HTTP failed.
    fn answered(&mut self, reply: Option<Value>) {
        let agent = Arc::clone(&self.agent);
        let mut page = agent.page();
        let Some(reply) = reply else {
            return self.again_in(300);
        };
        let at = reply["id"].as_u64().and_then(|id| usize::try_from(id / 1_000).ok());
        let Some((at, order)) = at.and_then(|at| Some((at, page.orders.get_mut(at)?))) else {
            page.odd.push(format!("a reply to nothing that was asked: {reply}"));
            return;
        };
        let answer = match reply.get("result") {
            Some(result) => Ok(result.clone()),
            None => Err(reply["error"].clone()),
        };
        if order.answer.is_some() {
            // To an attempt that was given up before: it must say the same.
            order.again.extend(answer.ok());
            return;
        }
        if let Err(error) = &answer
            && error["data"]["retryable"] != json!(false)
        {
            let wait = error["data"]["retry_after_ms"].as_u64().unwrap_or(200).min(1_000);
            order.unsure = Some(error.clone());
            if error["code"] == json!(TIMEOUT) && now() > order.first_sent + GIVE_UP && self.open == Some(at) {
                order.given_up = true;
                // Whether it paused is unknown: the end is to see to it.
                self.paused |= matches!(order.act, Act::Pause | Act::Resume);
                self.last.take_if(|last| *last == order.key);
                self.open = None;
            }
            return self.again_in(wait);
        }
        if let Act::Pause | Act::Resume = order.act {
            // A resume that is refused for good would be refused again.
            self.paused = order.act == Act::Pause && answer.is_ok();
        }
        order.answer = Some((now(), answer));
        if self.open == Some(at) {
            let pace = agent.style.orders_every;
            (self.open, self.sent) = (None, false);
            self.act_at = Instant::now() + pace.mul_f64(0.5 + rand::random::<f64>());
        }
    }

    fn again_in(&mut self, milliseconds: u64) {
        self.sent = false;
        let wait = Duration::from_millis(milliseconds).mul_f64(0.5 + rand::random::<f64>());
        self.act_at = Instant::now() + wait;
    }
}

async fn wait_for(answer: &mut Option<BoxFuture<'static, Option<Value>>>) -> Option<Value> {
    match answer {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

fn method_of(act: Act) -> &'static str {
    match act {
        Act::Set => "client.set",
        Act::Pause => "client.pause",
        Act::Resume => "client.resume",
        Act::Move => "client.move",
        Act::Push => "client.push",
    }
}
