//! A broker that is gone, empty or silent leaves the pipes open, and is told again what it forgot.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{ClientSocket, Cluster, Gateway, Pair, Redis, Settings, Sibling, eventually, kind_of};

/// How long the cluster may take to be whole again.
const HEALING: Duration = Duration::from_secs(30);
/// How long Redis is silent: longer than a broker command may take, shorter than a node's lease.
const SILENCE: Duration = Duration::from_secs(8);

/// More events than a node keeps for a client socket while the broker is away.
const EVENTS: u64 = 300;

/// Polls `probe` until it yields a value, for as long as healing may take.
async fn healed<T>(what: &str, since: Instant, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(since.elapsed() < HEALING, "not healed after {HEALING:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two members of one room on one node, and a sibling of the first on another.
struct Side {
    pair: Pair,
    mate: Pair,
    pipe: ClientSocket,
    mate_pipe: ClientSocket,
    far: Sibling,
}

impl Side {
    async fn on(home: &Gateway, away: &Gateway) -> Self {
        let pair = Pair::make(home, "hall", "text").await;
        let mate = Pair::make(home, "hall", "text").await;
        let pipe = ClientSocket::open_and_told(home, &pair).await;
        let mate_pipe = ClientSocket::open_and_told(home, &mate).await;
        let far = Sibling::open(away, &pair).await;
        Self { pair, mate, pipe, mate_pipe, far }
    }

    /// A frame from the first member reaches the second.
    async fn flows(&mut self, text: &str) {
        self.pipe.text(text).await;
        eventually("a frame to the same node", async || has(&self.mate_pipe, text).then_some(())).await;
    }

    fn assert_open(&self, when: &str) {
        assert!(self.pipe.is_open() && self.mate_pipe.is_open(), "the pipes stay open {when}");
        assert!(self.far.is_open(), "the sibling stays open {when}");
    }
}

fn has(pipe: &ClientSocket, text: &str) -> bool {
    pipe.texts().iter().any(|heard| heard == text)
}

fn members(page: &Value) -> Vec<String> {
    let members = page["members"].as_array().into_iter().flatten();
    let mut ids: Vec<_> = members.filter_map(|member| member["pair"].as_str()).map(str::to_owned).collect();
    ids.sort_unstable();
    ids
}

/// Sends numbered frames from one to the other until one has come across.
async fn crosses(from: &mut ClientSocket, to: &ClientSocket, word: &str, since: Instant) {
    let mut sent = 0;
    healed(&format!("frames cross nodes: {word}"), since, async || {
        from.text(format!("{word} {sent}")).await;
        sent += 1;
        to.texts().iter().any(|heard| heard.starts_with(word)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_empty_is_told_again() {
    let mut cluster = Cluster::redis(2, &Settings::new()).await;
    let mut sides =
        [Side::on(cluster.node(0), cluster.node(1)).await, Side::on(cluster.node(1), cluster.node(0)).await];
    for at in [0, 1] {
        sides[at].flows("before").await;
        let [one, two] = &mut sides;
        let (from, to) = if at == 0 { (one, two) } else { (two, one) };
        crosses(&mut from.pipe, &to.pipe, &format!("whole {at}"), Instant::now()).await;
    }
    let mut all: Vec<_> = sides.iter().flat_map(|side| [side.pair.id.clone(), side.mate.id.clone()]).collect();
    all.sort_unstable();

    cluster.redis.as_mut().expect("over Redis").kill();
    for side in &mut sides {
        side.far.event("broker.lost").await;
        side.flows("while it is down").await;
        side.assert_open("while the broker is down");
    }
    cluster.redis.as_mut().expect("over Redis").restart().await;
    let since = Instant::now();
    for side in &mut sides {
        side.far.event("broker.restored").await;
        side.assert_open("when the broker is back");
    }
    let [one, two] = &mut sides;
    crosses(&mut one.pipe, &two.pipe, "again from one", since).await;
    crosses(&mut two.pipe, &one.pipe, "again from two", since).await;
    for side in &mut sides {
        let Side { pipe, far, .. } = side;
        let mut pushed = 0;
        healed("a command reaches the other node", since, async || {
            let text = format!("pushed {pushed}");
            pushed += 1;
            far.call("client.push", json!({"text": text})).await.ok()
        })
        .await;
        eventually("the pushed frame is there", async || {
            pipe.texts().iter().any(|text| text.starts_with("pushed")).then_some(())
        })
        .await;
        healed("all are listed as members", since, async || {
            let page = far.call("room.members", json!({})).await.ok()?;
            (members(&page) == all).then_some(())
        })
        .await;
        let state = healed("the pair is live", since, async || {
            let state = far.call("pair.get", json!({})).await.ok()?;
            (state["client"] == "live").then_some(state)
        })
        .await;
        assert_eq!(state["epoch"], 1, "the same socket: {state}");
        healed("the sibling is told of the gap", since, async || {
            far.events().iter().any(|params| kind_of(params) == "gap").then_some(())
        })
        .await;
        let closed = far.events().iter().any(|params| kind_of(params) == "client.closed");
        assert!(!closed, "nothing closed: {:?}", far.events());
        side.flows("after").await;
        side.assert_open("to the end");
    }
    // What is restored is of use: the next socket takes over, and counts on.
    let again = ClientSocket::open(cluster.node(1), &sides[0].pair).await;
    assert_eq!(sides[0].pipe.closed().await.code, Some(3509));
    assert_eq!(sides[0].pair.state(cluster.node(0)).await["epoch"], 2);
    assert!(again.is_open());
}

/// A Redis that is stopped, and goes on in the end whatever happens.
struct Stopped {
    process: String,
}

impl Stopped {
    fn stop(redis: &Redis) -> Self {
        let info = redis.cli(&["info", "server"]);
        let process = info.lines().find_map(|line| line.trim().strip_prefix("process_id:"));
        let stopped = Self { process: process.expect("Redis tells its process").to_owned() };
        stopped.signal("-STOP");
        stopped
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.process]).status().expect("kill runs");
        assert!(sent.success(), "Redis was gone at {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_broker_is_lost_and_restored_and_costs_no_pipe() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let mut sides =
        [Side::on(cluster.node(0), cluster.node(1)).await, Side::on(cluster.node(1), cluster.node(0)).await];
    for side in &mut sides {
        side.flows("before").await;
    }
    let stopped = Stopped::stop(cluster.redis.as_ref().expect("over Redis"));
    let since = Instant::now();
    for side in &mut sides {
        side.far.event("broker.lost").await;
        side.flows("in the silence").await;
    }
    for at in [0, 1] {
        let node = cluster.node(at);
        eventually("no node is ready", async || (node.get("/readyz").await.status == 503).then_some(())).await;
        assert_eq!(node.get("/livez").await.status, 200, "livez never asks the broker");
    }
    // Not a wait for a state: this is how long the silence lasts.
    tokio::time::sleep(SILENCE.saturating_sub(since.elapsed())).await;
    for side in &sides {
        side.assert_open("in the silence");
    }
    stopped.signal("-CONT");
    let since = Instant::now();
    for at in [0, 1] {
        let node = cluster.node(at);
        healed("every node is ready", since, async || (node.get("/readyz").await.status == 200).then_some(())).await;
    }
    for side in &mut sides {
        side.far.event("broker.restored").await;
        let heard = side.far.events();
        let said: Vec<_> = heard.iter().map(kind_of).filter(|kind| kind.starts_with("broker.")).collect();
        assert_eq!((said[0], said[1]), ("broker.lost", "broker.restored"), "{said:?}");
    }
    let [one, two] = &mut sides;
    crosses(&mut one.pipe, &two.pipe, "again from one", since).await;
    crosses(&mut two.pipe, &one.pipe, "again from two", since).await;
    for side in &mut sides {
        side.flows("after").await;
        side.assert_open("to the end");
        let state = side.far.must("pair.get", json!({})).await;
        assert_eq!((&state["client"], &state["epoch"]), (&json!("live"), &json!(1)), "{state}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_the_broker_is_away_is_told_afterwards() {
    // Away for longer than the lease: every node's has run out when Redis is back, and nobody is dead.
    let cluster = Cluster::redis(2, &Settings::new().set("NODE_LEASE_SECONDS", 2)).await;
    let (home, away) = (cluster.node(0), cluster.node(1));
    let mut side = Side::on(home, away).await;
    let mut mate_far = Sibling::open(away, &side.mate).await;
    let mut near = Sibling::open(home, &side.pair).await;
    side.flows("before").await;
    let stopped = Stopped::stop(cluster.redis.as_ref().expect("over Redis"));
    let since = Instant::now();
    side.far.event("broker.lost").await;
    // More than the node keeps for one client socket.
    for n in 0..EVENTS {
        let meta = json!({"meta": {"n": n}});
        near.must("client.set", meta).await;
    }
    let Side { pair, mate_pipe, pipe, mut far, .. } = side;
    mate_pipe.close(4321, "enough").await;
    tokio::time::sleep(SILENCE.saturating_sub(since.elapsed())).await;
    stopped.signal("-CONT");
    let since = Instant::now();

    healed("the last one is told", since, async || {
        far.events().iter().any(|params| params["data"]["meta"]["n"] == EVENTS - 1).then_some(())
    })
    .await;
    let (mut next, mut gaps) = (0, 0);
    for params in far.events() {
        match kind_of(&params) {
            "client.changed" => {
                assert_eq!(params["data"]["meta"]["n"], next, "in order, none twice");
                next += 1;
            }
            "gap" => {
                let lost = params["data"]["lost"].as_u64().expect("it is known how many");
                next += lost;
                gaps += 1;
            }
            _ => {}
        }
    }
    assert_eq!((next, gaps), (EVENTS, 1), "told, or announced as lost where they were");
    let mut woken = Sibling::wake(away, &pair, "start").await;
    woken.event_where("client.changed", |params| params["data"]["meta"]["n"] == EVENTS - 1).await;
    let kinds = |sibling: &Sibling| sibling.events().iter().filter(|p| kind_of(p) == "gap").count();
    assert_eq!(kinds(&woken), 1, "whoever comes later is told of the same gap");

    let closed = mate_far.event("client.closed").await;
    assert_eq!((&closed["data"]["by"], &closed["data"]["code"]), (&json!("client"), &json!(4321)), "{closed}");
    let state = far.call("pair.get", json!({})).await.expect("the node is asked");
    assert_eq!((&state["client"], &state["epoch"]), (&json!("live"), &json!(1)), "{state}");
    assert!(pipe.is_open(), "nobody was taken for dead");
}
