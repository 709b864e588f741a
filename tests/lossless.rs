//! A numbered stream at full speed, while its receivers are handed over, cut off, and lose their nodes: no frame is lost,
//! none comes twice, and they keep their order. `LOSSLESS=1000` does so many switches and so many cuts, half of them by
//! killing nodes.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use support::{Cluster, Dial, Gateway, Pair, Settings, Sibling, Ws, kind_of, specify};
use tokio::sync::RwLock;
use tokio_tungstenite::tungstenite::Message;

const RECEIVERS: usize = 8;
/// How far the sender may be ahead of whoever is last: well within what the room keeps.
const AHEAD: u64 = 500_000;
/// How many frames one waits for its node to be killed.
const LONGEST_WAIT: u64 = 100_000;
/// How often a node is killed.
const BETWEEN_KILLS: Duration = Duration::from_secs(2);
/// The sender and the siblings are on node 0; the others are killed.
const HOME: usize = 0;

struct Field {
    cluster: RwLock<Cluster>,
    /// How many frames were sent.
    sent: AtomicU64,
    /// The last has been.
    over: AtomicBool,
    goal: usize,
    switches: AtomicUsize,
    cuts: AtomicUsize,
    kills: AtomicUsize,
    frames: AtomicU64,
    /// What each receiver has.
    have: Vec<AtomicU64>,
}

impl Field {
    fn enough(&self) -> bool {
        let half = self.goal / 2;
        self.switches.load(SeqCst) >= self.goal && self.cuts.load(SeqCst) >= half && self.kills.load(SeqCst) >= half
    }

    /// A way into the cluster that is open.
    async fn open(&self, pair: &Pair, ticket: &str, query: &str) -> (Ws, u64) {
        loop {
            let dial = {
                let cluster = self.cluster.read().await;
                // Mostly one that may be killed.
                let node: &Gateway = cluster.node(rand::random_range(0..10) % 3);
                Dial::to(node, format!("{}{query}", pair.path("/client"))).bearer(ticket)
            };
            match dial.connect().await {
                Ok((ws, answer)) => {
                    let epoch = answer.headers()["sibling-epoch"].to_str().expect("a header in ASCII");
                    return (ws, epoch.parse().expect("an epoch"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// What a receiver does after so many frames.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Switch,
    Cut,
    Wait,
}

async fn receive(field: Arc<Field>, number: usize, pair: Pair, mut sibling: Sibling) {
    let mut next = 0u64;
    let mut ticket = pair.client_ticket.clone();
    let mut query = String::new();
    loop {
        let (mut ws, epoch) = field.open(&pair, &ticket, &query).await;
        let mut received = 0u64;
        let after = rand::random_range(0..4_000);
        let fate = match rand::random_range(0..4) {
            0 | 1 => Fate::Switch,
            2 => Fate::Cut,
            _ => Fate::Wait,
        };
        let mut asked = None;
        loop {
            if received >= after && asked.is_none() {
                match fate {
                    Fate::Switch => asked = Some(sibling.ask("client.switch", json!({})).await),
                    Fate::Cut => {
                        field.cuts.fetch_add(1, SeqCst);
                        break;
                    }
                    // For its node to be killed, but not for ever: it may be on the one that is not.
                    Fate::Wait if received >= after + LONGEST_WAIT => {
                        field.cuts.fetch_add(1, SeqCst);
                        break;
                    }
                    Fate::Wait => {}
                }
            }
            if field.over.load(SeqCst) && next == field.sent.load(SeqCst) {
                field.frames.fetch_add(next, SeqCst);
                check(&sibling);
                return;
            }
            let message = match tokio::time::timeout(Duration::from_millis(200), ws.next()).await {
                Err(_) => continue,
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(_)) | None) => {
                    if asked.is_none() {
                        field.kills.fetch_add(1, SeqCst);
                    }
                    break;
                }
            };
            match message {
                Message::Binary(bytes) => {
                    let n = u64::from_be_bytes(bytes[..].try_into().expect("a number"));
                    assert_eq!(n, next, "epoch {epoch}, {received} received on it, query {query}");
                    next += 1;
                    received += 1;
                    field.have[number].store(next, SeqCst);
                }
                Message::Close(frame) => {
                    let code = frame.map(|frame| u16::from(frame.code));
                    // One that can't take so much at once is cut off as well, and goes on.
                    assert!(matches!(code, Some(3307 | 3413 | 1012)), "{code:?}");
                }
                _ => {}
            }
        }
        if let Some(asked) = asked {
            // A node may have died of which it was asked.
            if let Ok(switched) = sibling.reply(asked).await {
                field.switches.fetch_add(1, SeqCst);
                ticket = switched["client"]["ticket"].as_str().expect("a ticket").to_owned();
            }
        }
        drop(ws);
        query = format!("?received={received}&epoch={epoch}");
    }
}

/// Nothing was lost, and each time it went on exactly.
fn check(sibling: &Sibling) {
    let story = sibling.story();
    let of = |kind: &str| story.iter().filter(|params| kind_of(params) == kind).count();
    for params in story.iter().filter(|params| kind_of(params) == "client.resumed") {
        let data = &params["data"];
        assert_eq!((&data["lost"], &data["exact"]), (&json!(0), &json!(true)), "{params}");
    }
    // The last begin may not have been heard of yet.
    let (opened, closed) = (of("client.opened"), of("client.closed"));
    assert!(opened == closed || opened == closed + 1, "each begin is told, and each end: {opened}, {closed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_frame_is_lost_and_none_comes_twice() {
    let goal = std::env::var("LOSSLESS").ok().and_then(|goal| goal.parse().ok()).unwrap_or(24);
    let settings = Settings::new().set("NODE_LEASE_SECONDS", 2);
    let cluster = Cluster::redis(3, &settings).await;
    let home = cluster.node(HOME);
    specify(home, "stream", json!({"format": "binary", "history": {"messages": 1_000_000, "seconds": 120}})).await;
    let mut receivers = Vec::new();
    for _ in 0..RECEIVERS {
        let pair = Pair::from(home, json!({"room": "stream"})).await;
        let sibling = Sibling::open(home, &pair).await;
        receivers.push((pair, sibling));
    }
    let sender = Pair::from(home, json!({"room": "stream"})).await;
    let mut pipe = sender.dial_client(home).open().await;
    let field = Arc::new(Field {
        cluster: RwLock::new(cluster),
        sent: AtomicU64::new(0),
        over: AtomicBool::new(false),
        goal,
        switches: AtomicUsize::new(0),
        cuts: AtomicUsize::new(0),
        kills: AtomicUsize::new(0),
        frames: AtomicU64::new(0),
        have: (0..RECEIVERS).map(|_| AtomicU64::new(0)).collect(),
    });
    let tasks: Vec<_> = receivers
        .into_iter()
        .enumerate()
        .map(|(n, (pair, sibling))| tokio::spawn(receive(field.clone(), n, pair, sibling)))
        .collect();
    let members = async |field: &Field| {
        let cluster = field.cluster.read().await;
        let page = support::of_room(cluster.node(HOME), "GET", "stream", "/members").await.json();
        page["members"].as_array().map_or(0, Vec::len)
    };
    while members(&field).await < RECEIVERS + 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let speaking = {
        let field = field.clone();
        tokio::spawn(async move {
            let mut n = 0u64;
            while !field.enough() {
                for _ in 0..64 {
                    pipe.feed(Message::binary(n.to_be_bytes().to_vec())).await.expect("an open pipe");
                    n += 1;
                }
                pipe.flush().await.expect("an open pipe");
                while n > AHEAD + field.have.iter().map(|have| have.load(SeqCst)).min().unwrap_or(0) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            field.sent.store(n, SeqCst);
            field.over.store(true, SeqCst);
            pipe
        })
    };
    let (mut victim, mut killed) = (1, Instant::now());
    while !field.over.load(SeqCst) {
        assert!(!speaking.is_finished() || field.over.load(SeqCst), "the sender failed");
        assert!(tasks.iter().all(|task| !task.is_finished()), "a receiver failed");
        if field.kills.load(SeqCst) < field.goal / 2 && killed.elapsed() > BETWEEN_KILLS {
            killed = Instant::now();
            let mut cluster = field.cluster.write().await;
            cluster.node_mut(victim).kill();
            cluster.restart(victim).await;
            victim = 3 - victim;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for task in tasks {
        task.await.expect("a receiver has what it must have");
    }
    let (switches, cuts, kills) = (field.switches.load(SeqCst), field.cuts.load(SeqCst), field.kills.load(SeqCst));
    println!(
        "{} frames sent, {} received; {switches} switches, {cuts} cuts, {kills} by killed nodes",
        field.sent.load(SeqCst),
        field.frames.load(SeqCst)
    );
    drop(speaking.await);
}
