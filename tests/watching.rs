//! What a pair's siblings are told of its room: who comes, goes and dies there, over moves and naps.

mod support;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use rstest::rstest;
use serde_json::{Value, json};
use support::{Agent, Arrival, ClientSocket, Cluster, Kind, Pair, Settings, Sibling, eventually, kind_of, until};

/// Where it is told who comes and goes.
async fn watcher(cluster: &Cluster, node: usize, room: &str) -> Agent {
    let body = json!({"room": room, "format": "text"});
    let mut agent = Agent::enter(cluster.node(node), cluster.node(node + 1), body).await;
    agent.sibling.must("room.watch", json!({"joins": true})).await;
    agent.sibling.event("client.changed").await;
    agent
}

fn of_peers(sibling: &Sibling) -> Vec<(String, String, u64)> {
    let peers = sibling.story().into_iter().filter(|params| kind_of(params).starts_with("peer."));
    peers
        .map(|params| {
            let pair = params["data"]["pair"].as_str().expect("a pair").to_owned();
            (kind_of(&params).to_owned(), pair, params["data"]["members"].as_u64().expect("a count"))
        })
        .collect()
}

/// What is told when, without the rest.
fn brief(story: &[Value]) -> Vec<String> {
    let brief = |params: &Value| format!("{} {} {}", params["at"], kind_of(params), params["data"]["pair"]);
    story.iter().map(brief).collect()
}

fn came(pair: &Pair, members: u64) -> (String, String, u64) {
    ("peer.joined".into(), pair.id.clone(), members)
}

fn went(pair: &Pair, members: u64) -> (String, String, u64) {
    ("peer.left".into(), pair.id.clone(), members)
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_and_goes_is_told_once_and_again_the_same(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let mut ann = watcher(&cluster, 0, "hall").await;
    let mut quiet = Agent::enter(cluster.node(1), cluster.node(2), json!({"room": "hall", "format": "text"})).await;
    ann.sibling.event_where("peer.joined", |params| params["data"]["pair"] == quiet.pair.id).await;
    let cursor = ann.sibling.cursor();
    let ben = Pair::make(cluster.node(2), "hall", "text").await;
    let pipe = ClientSocket::open(cluster.node(1), &ben).await;
    ann.sibling.event_where("peer.joined", |params| params["data"]["pair"] == ben.id).await;
    // One that takes the place of another leaves, and comes.
    let again = ClientSocket::open(cluster.node(2), &ben).await;
    ann.sibling.event("peer.left").await;
    ann.sibling.event("peer.joined").await;
    drop(pipe);
    ben.command(cluster.node(0), "client.move", json!({"room": "attic"})).await.expect("it moves");
    ann.sibling.event("peer.left").await;
    ben.command(cluster.node(0), "client.move", json!({"room": "hall"})).await.expect("it moves");
    ann.sibling.event("peer.joined").await;
    ben.command(cluster.node(0), "client.move", json!({"room": "hall"})).await.expect("it stays");
    again.vanish().await;
    ann.sibling.event("peer.left").await;
    quiet.sibling.must("client.set", json!({"meta": {}})).await;
    quiet.sibling.event("client.changed").await;

    let expected = [
        came(&quiet.pair, 2),
        came(&ben, 3),
        went(&ben, 2),
        came(&ben, 3),
        went(&ben, 2),
        came(&ben, 3),
        went(&ben, 2),
    ];
    assert_eq!(of_peers(&ann.sibling), expected);
    assert_eq!(of_peers(&quiet.sibling), [], "it does not watch");
    for node in 0..3 {
        let mut woken = Sibling::wake(cluster.node(node), &ann.pair, &cursor).await;
        woken
            .event_where("peer.left", |params| params["data"]["members"] == 2 && params["data"]["pair"] == ben.id)
            .await;
        let rest = ann.sibling.story();
        woken.until("all of it", |all| all.len() == 7).await;
        assert_eq!(woken.story(), rest[rest.len() - 6..], "field for field");
        // Each place among them is one to wake from.
        for (at, params) in rest.iter().enumerate().rev().take(6) {
            let mut later = Sibling::wake(cluster.node(node), &ann.pair, params["cursor"].as_str().unwrap()).await;
            later.until("the rest", |all| all.len() == rest.len() - at).await;
            assert_eq!(later.story(), rest[at + 1..]);
        }
    }
    for pipe in [&ann.pipe, &quiet.pipe] {
        assert_eq!(pipe.received(), 0, "the pipe is pure");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_told_to_have_left_once() {
    let settings = Settings::new().set("NODE_LEASE_SECONDS", 1);
    let mut cluster = Cluster::redis(3, &settings).await;
    let mut ann = watcher(&cluster, 1, "hall").await;
    let mut lost = Vec::new();
    for _ in 0..12 {
        let pair = Pair::make(cluster.node(0), "hall", "text").await;
        let pipe = ClientSocket::open(cluster.node(0), &pair).await;
        ann.sibling.event_where("peer.joined", |params| params["data"]["pair"] == pair.id).await;
        lost.push((pair, pipe));
    }
    cluster.node_mut(0).kill();
    let left = |sibling: &Sibling| of_peers(sibling).into_iter().filter(|(kind, ..)| kind == "peer.left").count();
    until("all are told to have left", || left(&ann.sibling) == 12).await;
    // Two survivors were at it; what comes last is behind whatever either had to tell.
    let last = Pair::make(cluster.node(1), "hall", "text").await;
    let _pipe = ClientSocket::open(cluster.node(1), &last).await;
    let joined = ann.sibling.event_where("peer.joined", |params| params["data"]["pair"] == last.id).await;
    assert_eq!(joined["data"]["members"], 2, "{joined}");
    for (pair, _) in &lost {
        let told = of_peers(&ann.sibling).into_iter().filter(|(_, id, _)| *id == pair.id).map(|(kind, ..)| kind);
        assert_eq!(told.collect::<Vec<_>>(), ["peer.joined", "peer.left"]);
    }
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_story_goes_on_in_the_room_that_it_moved_to(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let mut ann = watcher(&cluster, 0, "hall").await;
    let body = |room: &str| json!({"room": room, "format": "text"});
    let mut hall = Agent::enter(cluster.node(1), cluster.node(1), body("hall")).await;
    let mut attic = Agent::enter(cluster.node(2), cluster.node(2), body("attic")).await;
    let say = |data: &str| json!({"to": "room", "data": data});
    ann.sibling.event("peer.joined").await;
    let cursor = ann.sibling.cursor();
    let mut asleep = Vec::new();
    for (round, room) in ["attic", "hall", "attic"].into_iter().enumerate() {
        let hear = |n: usize| (1 - round % 2) as u64 * n as u64;
        hall.sibling.must("room.signal", say(&format!("hall {round}"))).await;
        assert_eq!(attic.sibling.must("room.signal", say(&format!("attic {round}"))).await["delivered"], 1 - hear(1));
        ann.sibling.event("signal").await;
        asleep.push(ann.sibling.cursor());
        ann.sibling.must("client.move", json!({"room": room})).await;
        ann.sibling.event("client.moved").await;
    }
    // One comes to where it is, one to where it was.
    let to_hall = Agent::enter(cluster.node(0), cluster.node(0), body("hall")).await;
    let to_attic = Agent::enter(cluster.node(0), cluster.node(0), body("attic")).await;
    ann.sibling.event_where("peer.joined", |params| params["data"]["pair"] == to_attic.pair.id).await;

    let story = ann.sibling.story();
    let said: Vec<_> =
        story.iter().filter(|params| kind_of(params) == "signal").map(|p| p["data"]["data"].clone()).collect();
    assert_eq!(said, ["hall 0", "attic 1", "hall 2"]);
    assert!(of_peers(&ann.sibling).iter().all(|(_, pair, _)| *pair != to_hall.pair.id), "it is elsewhere");
    asleep.push(cursor);
    for cursor in &asleep {
        for node in 0..3 {
            let mut woken = Sibling::wake(cluster.node(node), &ann.pair, cursor).await;
            woken.event_where("peer.joined", |params| params["data"]["pair"] == to_attic.pair.id).await;
            assert_eq!(woken.story(), *support::after(&story, cursor), "from {cursor}");
        }
    }
    let mut from_start = Sibling::wake(cluster.node(1), &ann.pair, "start").await;
    from_start.event_where("peer.joined", |params| params["data"]["pair"] == to_attic.pair.id).await;
    assert_eq!(brief(&from_start.story()), brief(&story), "what it watched then, and where it was then");
    assert_eq!(from_start.story(), story);
    // One that begins now is where the pair is now.
    let mut now = Sibling::open(cluster.node(2), &ann.pair).await;
    attic.sibling.must("room.signal", say("last")).await;
    assert_eq!(now.event("signal").await["data"]["data"], "last");
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_trimmed_of_a_rooms_talk_is_a_gap(#[case] kind: Kind) {
    let settings = Settings::new().set("HISTORY_EVENTS", 32).set("HISTORY_SECONDS", 0);
    let cluster = Cluster::start(kind, &settings).await;
    let ann = watcher(&cluster, 0, "hall").await;
    let mut ben = Agent::enter(cluster.node(1), cluster.node(1), json!({"room": "hall", "format": "text"})).await;
    let mut awake = Sibling::open(cluster.node(2), &ann.pair).await;
    awake.must("client.set", json!({"meta": {}})).await;
    let cursor = awake.event("client.changed").await["cursor"].as_str().expect("a cursor").to_owned();
    ben.sibling.pour(100, |n| ("room.signal", json!({"to": "room", "data": n}))).await;
    awake.event_where("signal", |params| params["data"]["data"] == 99).await;
    let story = awake.story();
    let mut woken = Sibling::wake(cluster.node(0), &ann.pair, &cursor).await;
    woken.event_where("signal", |params| params["data"]["data"] == 99).await;
    let told = woken.events();
    let kept = &told[2..];
    assert_eq!(kind_of(&told[1]), "gap", "{}", told[1]);
    assert!(kept.len() >= 32, "{} are kept", kept.len());
    assert_eq!(told[1]["data"]["lost"], json!(100 - kept.len()), "{}", told[1]);
    assert_eq!(*kept, story[story.len() - kept.len()..]);
}

/// Redis' counts of the commands that write or publish.
fn writes(cluster: &Cluster) -> u64 {
    let redis = cluster.redis.as_ref().expect("a Redis of its own");
    let stats = redis.cli(&["INFO", "commandstats"]);
    let names =
        ["zadd", "zrem", "hset", "hdel", "set", "del", "rpush", "ltrim", "spublish", "publish", "pexpire", "persist"];
    let calls = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(':')?;
        let calls = rest.strip_prefix("calls=")?.split(',').next()?;
        names.contains(&name).then(|| calls.parse::<u64>().expect("a count"))
    };
    stats.lines().filter_map(calls).sum()
}

/// The same with all that was put off, such as what tells a crowd, and what strikes notes: when nothing more is written.
async fn settled_writes(cluster: &Cluster) -> u64 {
    let (mut count, mut since) = (writes(cluster), Instant::now());
    eventually("nothing more is written", async || {
        let now = writes(cluster);
        if now != count {
            (count, since) = (now, Instant::now());
        }
        (since.elapsed() >= Duration::from_secs(4)).then_some(count)
    })
    .await
}

/// How many members the room gets; set `ROOM_MEMBERS=10000` for a run that takes a while.
fn members() -> usize {
    std::env::var("ROOM_MEMBERS").ok().and_then(|n| n.parse().ok()).unwrap_or(500)
}

/// Whom an event tells of: one, or of a crowd many.
fn whom(params: &Value) -> Vec<String> {
    let one = params["data"]["pair"].as_str().into_iter();
    let many = params["data"]["pairs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    one.chain(many).map(str::to_owned).collect()
}

/// Waits until it is told of all of these, each once, and returns by how many events.
async fn until_told(sibling: &mut Sibling, kind: &str, pairs: &[Pair]) -> usize {
    let due: HashSet<_> = pairs.iter().map(|pair| pair.id.clone()).collect();
    let of_them = |params: &&Value| kind_of(params) == kind && whom(params).iter().any(|pair| due.contains(pair));
    let told =
        |events: &[&Value]| events.iter().flat_map(|params| whom(params)).filter(|pair| due.contains(pair)).count();
    sibling
        .until("all are told of", |all| {
            told(&all.iter().filter_map(Arrival::event).filter(of_them).collect::<Vec<_>>()) >= pairs.len()
        })
        .await;
    let story = sibling.story();
    let events: Vec<_> = story.iter().filter(of_them).collect();
    assert_eq!(told(&events), due.len(), "each once");
    events.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_costs_the_same_however_many_are_there() {
    // A lease that is not renewed meanwhile: beats are writes, too.
    let settings = Settings::new().set("NODE_LEASE_SECONDS", 300).set("HISTORY_EVENTS", 20_000);
    let cluster = Cluster::redis(2, &settings).await;
    let mut watchers = Vec::new();
    for n in 0..10 {
        watchers.push(watcher(&cluster, n, "crowd").await);
    }
    // The other half of what a pair costs is paid before.
    let mut pairs = Vec::new();
    for _ in 0..members() {
        let body = json!({"room": "crowd", "format": "text", "linger": 3_600});
        pairs.push(Pair::from(cluster.node(0), body).await);
    }
    let mut pipes = Vec::new();
    let mut join = async |some: &[Pair]| {
        let before = settled_writes(&cluster).await;
        for (n, pair) in some.iter().enumerate() {
            pipes.push(ClientSocket::open(cluster.node(n), pair).await);
            for watcher in &mut watchers {
                watcher.sibling.event_where("peer.joined", |params| whom(params).contains(&pair.id)).await;
            }
        }
        (settled_writes(&cluster).await - before) as f64 / some.len() as f64
    };
    let (first, rest) = pairs.split_at(50);
    let (between, last) = rest.split_at(rest.len() - 50);
    let few = join(first).await;
    let mut crowd = Vec::new();
    for (n, pair) in between.iter().enumerate() {
        crowd.push(ClientSocket::open(cluster.node(n), pair).await);
    }
    let many = join(last).await;
    println!("writes a join: {few} among the first, {many} among the last of {}", pairs.len());
    // One more to note it, and those that tell of all who were noted.
    assert!(many <= few + 8.0, "{few} writes among few, {many} among many");
    assert!(many < 24.0, "one entry in the talk, and what a pair costs: {many}");
    for watcher in &mut watchers {
        let events = until_told(&mut watcher.sibling, "peer.joined", &pairs).await;
        assert!(events < pairs.len(), "{events} events of {} members", pairs.len());
    }
    drop((pipes, crowd));
    let sleeper = watchers.pop().expect("ten of them");
    drop(sleeper.sibling);
    for watcher in &mut watchers {
        let events = until_told(&mut watcher.sibling, "peer.left", &pairs).await;
        assert!(events < pairs.len(), "{events} events of {} members", pairs.len());
    }
    // What a crowd is told is told to those who slept as well, and again the same.
    let mut woken = Sibling::wake(cluster.node(1), &sleeper.pair, "start").await;
    until_told(&mut woken, "peer.left", &pairs).await;
    let peers = |sibling: &Sibling, kind: &str| {
        let peers = sibling.story().into_iter().filter(|params| kind_of(params) == kind);
        peers.map(|params| (params["at"].clone(), params["data"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(peers(&woken, "peer.left"), peers(&watchers[0].sibling, "peer.left"));
}
