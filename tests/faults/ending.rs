//! The end of a run: what the gateway says of each pair is what the agents hold, everything ends, nothing stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::agent::Agent;
use super::field::{dial, post};
use super::ledger::{Violation, place_of};
use super::load::{HEALING, Load};
use super::record::Act;
use super::stage::{HISTORY, KEYS, NODES, Stage};
use crate::support::{is_kept, kind_of};

/// How much more memory than at its start Redis may use at the end: scripts, buffers of connections and of the log.
const MARGIN: u64 = 4 << 20;
/// How much a command's key takes that is still remembered.
const KEY: u64 = 512;
/// After such a silence a history is taken for read where its end is not known.
const SILENCE: Duration = Duration::from_secs(5);
/// How often a place in a history is compared with another.
const LOOK: Duration = Duration::from_millis(100);
/// How much later than its time a key may go: Redis forgets in passes, and nodes are asked in turns.
const LATE: Duration = Duration::from_secs(20);
/// How many pairs are looked at together.
const TOGETHER: usize = 8;

fn said(pair: &str, what: String) -> Violation {
    Violation { rule: "end", pair: pair.to_owned(), what }
}

/// One command over HTTP, sent again until it is answered.
async fn command(
    stage: &Stage,
    agent: &Agent,
    method: &str,
    params: Value,
    deadline: Instant,
) -> Result<Value, String> {
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    loop {
        let node = stage.field.pick(None).expect("a live node");
        let reply = post(node, &agent.pair.path("/commands"), &agent.pair.sibling_ticket, &message).await;
        let answer: Value = reply.and_then(|reply| serde_json::from_slice(&reply.body).ok()).unwrap_or_default();
        if answer.get("result").is_some() {
            return Ok(answer["result"].clone());
        }
        if answer["error"]["data"]["retryable"] == json!(false) || Instant::now() > deadline {
            return Err(answer.to_string());
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Has a fresh sibling of each pair read its history from the start, on another node than its own sibling's.
pub async fn read_all(stage: &Stage, load: &Load) -> Vec<Violation> {
    let deadline = Instant::now() + HEALING;
    let reads = stream::iter(&load.agents).map(async |agent| {
        let own = agent.page().links.last().map(|link| link.node);
        let read = read_one(stage, agent, own, deadline).await;
        read.err().map(|why| said(&agent.pair.id, format!("its history could not be read from the start: {why}")))
    });
    reads.buffer_unordered(TOGETHER).filter_map(async |wrong| wrong).collect().await
}

async fn read_one(stage: &Stage, agent: &Agent, own: Option<SocketAddr>, deadline: Instant) -> Result<(), String> {
    // Of a pair that did not get to its last command, all that comes is read.
    let done = agent.done.load(Relaxed);
    let last = agent.page().orders.last().filter(|_| done).map(|order| order.key.clone());
    let node = stage.field.pick(own).ok_or("no node")?;
    let path = format!("{}?cursor=start", agent.pair.path("/sibling"));
    let ws = dial(node, &path, &agent.pair.sibling_ticket, None).await.map_err(|refused| format!("{refused:?}"))?;
    let (mut stream, mut told, mut there, mut came) = (ws, Vec::<Value>::new(), false, Instant::now());
    loop {
        match timeout(LOOK, stream.next()).await {
            Ok(Some(Ok(Message::Text(text)))) => {
                came = Instant::now();
                let message = serde_json::from_str::<Value>(&text).map_err(|fault| format!("{fault}: {text}"))?;
                let params = &message["params"];
                there |= done && params["cause"]["key"].as_str() == last.as_deref();
                if !matches!(kind_of(params), "ready" | "broker.lost" | "broker.restored" | "node.draining") {
                    told.push(params.clone());
                }
            }
            Ok(Some(Ok(_))) | Err(_) => {}
            Ok(_) => return Err(format!("the socket ended after {} events", told.len())),
        }
        // Something may happen to a pair while this reads: both are compared where they stand at the same place.
        let mut page = agent.page();
        let heard = page.heard.iter().rev().find(|heard| is_kept(&heard.params));
        let level = heard.map(|heard| place_of(&heard.params)) == told.last().map(place_of);
        let late = if done { Instant::now() > deadline } else { came.elapsed() > SILENCE };
        if level && (there || !done) || late {
            let events = told.len();
            (page.settled, page.told) = (page.heard.len(), told);
            let missed = late && done && !there;
            return if missed {
                Err(format!("the event of {last:?} never came, {events} others did"))
            } else {
                Ok(())
            };
        }
    }
}

/// The sockets that the agents hold open are those that the gateway calls live, and the members of their rooms.
pub async fn compare_states(stage: &Stage, load: &Load) -> Vec<Violation> {
    // One limit for all: a cluster that answers nobody is found out once.
    let deadline = Instant::now() + HEALING;
    let mut wrong: Vec<_> = stream::iter(&load.agents)
        .map(async |agent| {
            let state = command(stage, agent, "pair.get", json!({}), deadline).await;
            compare_state(stage, agent, &state).err().map(|why| said(&agent.pair.id, why))
        })
        .buffer_unordered(TOGETHER)
        .filter_map(async |wrong| wrong)
        .collect()
        .await;
    let mut rooms: BTreeMap<String, BTreeMap<String, Arc<Agent>>> = BTreeMap::new();
    for agent in &load.agents {
        if !agent.page().pipes.iter().any(|pipe| pipe.ended.is_none()) {
            continue;
        }
        rooms.entry(room_of(agent)).or_default().insert(agent.pair.id.clone(), Arc::clone(agent));
    }
    for (room, members) in rooms {
        let (_, asks) = members.first_key_value().expect("a room with somebody in it");
        let expected: BTreeSet<_> = members.keys().cloned().collect();
        // A member that is just leaving may be listed for a moment.
        loop {
            let listed = command(stage, asks, "room.members", json!({"limit": 1_000}), deadline).await;
            let listed = listed.map(|page| {
                let members = page["members"].as_array().cloned().unwrap_or_default();
                members.iter().filter_map(|m| m["pair"].as_str().map(str::to_owned)).collect::<BTreeSet<_>>()
            });
            if listed.as_ref() == Ok(&expected) {
                break;
            }
            if Instant::now() > deadline {
                wrong.push(match listed {
                    Ok(listed) => {
                        let more: Vec<_> = listed.difference(&expected).collect();
                        let less: Vec<_> = expected.difference(&listed).collect();
                        said(&room, format!("room.members: too many {more:?}, missing {less:?}"))
                    }
                    Err(why) => said(&room, format!("room.members: {why}")),
                });
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
    wrong
}

/// Where the pair's last move led, by its answer.
fn room_of(agent: &Agent) -> String {
    let page = agent.page();
    let mut moves = page.orders.iter().rev().filter(|order| order.act == Act::Move);
    let to = moves.find_map(|order| Some(order.answer.as_ref()?.1.as_ref().ok()?["to"].as_str()?.to_owned()));
    to.unwrap_or_else(|| page.rooms[0].clone())
}

fn compare_state(stage: &Stage, agent: &Agent, state: &Result<Value, String>) -> Result<(), String> {
    let state = state.as_ref().map_err(|why| format!("pair.get: {why}"))?;
    let page = agent.page();
    let open: Vec<_> = page.pipes.iter().filter(|pipe| pipe.ended.is_none()).collect();
    let [pipe] = open.as_slice() else {
        return Err(format!("{} client sockets are open at the end; {state}", open.len()));
    };
    let opened = page.heard.iter().rev().map(|heard| &heard.params).find(|params| kind_of(params) == "client.opened");
    let opened = &opened.ok_or("no client.opened was ever heard")?["data"];
    let names = stage.field.names();
    let expected = json!(["live", opened["epoch"], opened["node"]]);
    let is = json!([state["client"], state["epoch"], state["node"]]);
    if is != expected {
        return Err(format!("pair.get says {is}, its last client.opened {expected}"));
    }
    match names.get(&pipe.node) {
        Some(name) if state["node"] == json!(name) => Ok(()),
        name => Err(format!("the agent's socket is on {name:?} ({}), pair.get says {}", pipe.node, state["node"])),
    }
}

/// Ends every pair: its socket is closed with 3510.
pub async fn end_pairs(stage: &Stage, load: &Load) -> Vec<Violation> {
    load.over();
    let deadline = Instant::now() + HEALING;
    let ends = stream::iter(&load.agents).map(async |agent| {
        let open: Vec<_> = {
            let page = agent.page();
            (0..page.pipes.len()).filter(|at| page.pipes[*at].ended.is_none()).collect()
        };
        if let Err(why) = command(stage, agent, "pair.end", json!({"key": "the-end"}), deadline).await {
            return Some(said(&agent.pair.id, format!("pair.end: {why}")));
        }
        loop {
            let ended: Option<Vec<_>> =
                open.iter().map(|at| agent.page().pipes[*at].ended.clone().map(|(_, closed, _)| closed)).collect();
            match ended {
                Some(ended) if ended.iter().all(|closed| closed.code == Some(3510)) => return None,
                Some(ended) => return Some(said(&agent.pair.id, format!("ended, and closed with {ended:?}"))),
                None if Instant::now() > deadline => {
                    return Some(said(&agent.pair.id, "ended, and its socket stays open".into()));
                }
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    });
    ends.buffer_unordered(TOGETHER).filter_map(async |wrong| wrong).collect().await
}

/// Keys that may be there while nodes run, or because nobody waits for them.
fn may_stay(key: &str) -> bool {
    key == "sib:{nodes}:alive" || key == "sib:{nodes}:value"
}

/// After the history's time only the nodes' leases are left; after the nodes' end, nothing.
pub async fn nothing_stays(stage: &mut Stage, memory_before: u64) -> Vec<Violation> {
    let mut wrong = Vec::new();
    let patience = HISTORY + KEYS + LATE;
    let left = keys_left(stage, patience, may_stay).await;
    if !left.is_empty() {
        wrong.push(said(
            "-",
            format!("{} keys stay while nodes run, such as {:?}", left.len(), &left[..left.len().min(8)]),
        ));
    }
    // A node that died is forgotten, and those that live are known.
    let alive = stage.cli(&["ZCARD", "sib:{nodes}:alive"]).await;
    if stage.redis.is_some() && alive != NODES.to_string() {
        wrong.push(said("-", format!("{alive} nodes have a lease, {NODES} run")));
    }
    for node in &mut stage.nodes {
        if !node.is_running() {
            wrong.push(said("-", format!("the node {} does not run any more", node.addr)));
            continue;
        }
        node.signal("TERM");
        let status = node.exit(Duration::from_secs(60)).await;
        if status.code() != Some(0) {
            wrong.push(said("-", format!("the node {} ended with {status}", node.addr)));
        }
    }
    let left = keys_left(stage, Duration::from_secs(5), |key| {
        !key.contains("}:alive") && !key.contains("}:value") && may_stay(key)
    })
    .await;
    if !left.is_empty() {
        wrong.push(said(
            "-",
            format!("{} keys stay after all nodes have ended: {:?}", left.len(), &left[..left.len().min(8)]),
        ));
    }
    // Where servers change their roles, replication has buffers of its own.
    let memory = if stage.redis.is_some() { stage.used_memory().await } else { 0 };
    let keys = KEY * u64::try_from(stage.keys().await.len()).expect("a count");
    if memory > memory_before + MARGIN + keys {
        wrong.push(said("-", format!("Redis uses {memory} bytes at the end, {memory_before} at its start")));
    }
    wrong
}

/// Waits until no key is left but those that may stay, and returns what was left in the end.
async fn keys_left(stage: &Stage, patience: Duration, may_stay: impl Fn(&str) -> bool) -> Vec<String> {
    let deadline = Instant::now() + patience;
    loop {
        let mut left = stage.keys().await;
        left.retain(|key| !may_stay(key));
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_left_behind_is_none_that_may_stay() {
        for key in ["sib:{pair_1}:pair", "sib:{pair_1}:log", "sib:{room/hall-1}:members", "sib:{node_1}:holds"] {
            assert!(!may_stay(key), "{key}");
        }
        assert!(may_stay("sib:{nodes}:alive"));
    }
}
