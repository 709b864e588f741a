//! Control is never stuck behind data, and a slow one costs only itself.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{
    Arrival, ClientSocket, Cluster, Codec, Gateway, Pair, RawSocket, Settings, Sibling, check_run, counter,
    eventually, kind_of,
};
use tokio_tungstenite::tungstenite::Message;

const MIB: u64 = 1024 * 1024;
/// Frames of 60 KB for a jammed receiver: 90 MB, more than any bound that is checked here.
const FLOOD: u32 = 1_500;

/// A peer with small buffers that does not read.
async fn jammed(node: &Gateway, pair: &Pair) -> RawSocket {
    RawSocket::upgrade(node, &pair.path("/client"), &pair.client_ticket, None).await
}

/// Sends `count` numbered frames of `size` bytes.
async fn flood(sender: &mut ClientSocket, count: u32, size: usize) {
    for n in 0..count {
        let mut frame = vec![0; size];
        frame[..4].copy_from_slice(&n.to_be_bytes());
        sender.binary(frame).await;
    }
}

fn number(frame: &Message) -> u32 {
    let Message::Binary(bytes) = frame else {
        panic!("expected a binary frame, got {frame:?}");
    };
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// Runs one command and checks that it was answered at once.
async fn at_once(sibling: &mut Sibling, method: &str, params: Value) -> Value {
    let started = Instant::now();
    let reply = sibling.must(method, params).await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(1), "{method} took {took:?} over a jammed pipe");
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jammed_pipe_answers_its_sibling_at_once() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let stuck = Pair::make(a, "cam", "binary").await;
    let speaks = Pair::make(a, "cam", "binary").await;
    let _peer = jammed(a, &stuck).await;
    let mut sender = ClientSocket::open(a, &speaks).await;
    let mut sibling = Sibling::open(b, &stuck).await;
    sibling.must("client.set", json!({"slow": "drop_newest"})).await;

    flood(&mut sender, 300, 65_536).await;
    eventually("the pipe is jammed and drops", async || {
        let state = sibling.must("pair.get", json!({})).await;
        (counter(&state, "dropped_frames") > 0).then_some(())
    })
    .await;
    for _ in 0..5 {
        at_once(&mut sibling, "pair.get", json!({})).await;
    }
    at_once(&mut sibling, "client.set", json!({"meta": {"jammed": true}})).await;
    let paused = json!({"direction": "out", "policy": "drop"});
    at_once(&mut sibling, "client.pause", paused).await;
    at_once(&mut sibling, "client.resume", json!({"direction": "out"})).await;
    at_once(&mut sibling, "client.close", json!({"code": 4000, "key": "close"})).await;
    let closed = sibling.event("client.closed").await;
    assert_eq!(closed["cause"]["key"], "close", "{closed}");
    assert_eq!(closed["data"]["by"], "sibling", "{closed}");
    let state = at_once(&mut sibling, "pair.get", json!({})).await;
    assert_eq!(state["client"], "detached", "{state}");
    assert!(sender.is_open(), "the one that speaks is not touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_pipe_answers_too_and_its_frames_wait() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "cam", "binary").await;
    let watches = Pair::make(cluster.node(0), "cam", "binary").await;
    let mut sender = ClientSocket::open(cluster.node(0), &pair).await;
    let mut watcher = ClientSocket::open(cluster.node(1), &watches).await;
    let mut sibling = Sibling::open(cluster.node(1), &pair).await;
    sender.binary("one").await;
    watcher.until_received(1).await;
    // What was held back comes in one burst.
    let wide = json!({"queue_bytes": 64 * MIB});
    watches.command(cluster.node(1), "client.set", wide).await.expect("a wide queue");
    sibling.must("client.pause", json!({"direction": "in", "policy": "hold"})).await;
    // More than any kernel buffer between the two: the sender feels it.
    let big = vec![7; 512 * 1024];
    let mut sent = 0_u64;
    let stuck = async {
        loop {
            sender.binary(big.clone()).await;
            sent += 1;
        }
    };
    let stall = tokio::time::timeout(Duration::from_secs(2), stuck).await;
    assert!(stall.is_err(), "a held pipe takes no end of frames");
    assert!(sent < 64, "{sent} frames of 512 KiB went into a held pipe");
    at_once(&mut sibling, "pair.get", json!({})).await;
    assert_eq!(watcher.received(), 1, "nothing leaves a held pipe");
    at_once(&mut sibling, "client.resume", json!({"direction": "in"})).await;
    watcher.until_received(1 + usize::try_from(sent).expect("a count")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sibling_that_vanishes_leaves_its_pipe_untouched() {
    let mut cluster = Cluster::redis(3, &Settings::new()).await;
    let from = Pair::make(cluster.node(0), "cam", "binary").await;
    let to = Pair::make(cluster.node(0), "cam", "binary").await;
    let mut sender = ClientSocket::open(cluster.node(0), &from).await;
    let mut receiver = ClientSocket::open(cluster.node(1), &to).await;
    // Room for all of it: how fast the receiver is, is not the point.
    let wide = json!({"queue_bytes": 64 * MIB});
    to.command(cluster.node(0), "client.set", wide).await.expect("a wide queue");
    let frames: u32 = 1_500;
    let vanish = async {
        for round in 0..30 {
            for pair in [&from, &to] {
                let mut sibling = Sibling::open(cluster.node(round), pair).await;
                // It vanishes with commands in flight.
                sibling.ask("client.set", json!({"meta": {"round": round}})).await;
                sibling.ask("client.ping", json!({})).await;
                sibling.vanish().await;
            }
        }
    };
    tokio::join!(vanish, flood(&mut sender, frames, 1_000));
    // A whole node of siblings goes, without a goodbye.
    let _on_third = Sibling::open(cluster.node(2), &to).await;
    cluster.node_mut(2).kill();
    flood(&mut sender, frames, 1_000).await;
    receiver.until_received(2 * frames as usize).await;
    let numbers: Vec<_> = receiver.frames().iter().map(number).collect();
    assert!(numbers.iter().copied().eq((0..frames).chain(0..frames)), "every frame, in order");
    assert!(sender.is_open() && receiver.is_open());
    assert_eq!(sender.received(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_receiver_is_closed_and_told_and_no_one_else_is_hurt() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let slow = Pair::make(a, "cam", "binary").await;
    let fast = Pair::make(a, "cam", "binary").await;
    let speaks = Pair::make(a, "cam", "binary").await;
    let mut slow_peer = jammed(a, &slow).await;
    let mut fast_peer = ClientSocket::open(a, &fast).await;
    let mut sender = ClientSocket::open(b, &speaks).await;
    let mut over_slow = Sibling::open(b, &slow).await;
    let over_fast = Sibling::open(b, &fast).await;
    let before = a.resident_bytes();

    // 120 MB, which no kernel buffer and no queue of 1 MiB can take; paced by the fast receiver.
    let (frames, size) = (2_000_u32, 60_000);
    let mut peak = 0;
    for n in 0..frames {
        let mut frame = vec![0; size];
        frame[..4].copy_from_slice(&n.to_be_bytes());
        sender.binary(frame).await;
        if n % 4 == 3 {
            fast_peer.until_received(n as usize - 2).await;
            peak = peak.max(a.resident_bytes());
        }
    }
    over_slow.event("client.lagging").await;
    let closed = over_slow.event("client.closed").await;
    assert_eq!(closed["data"]["code"], 3413, "{closed}");
    assert_eq!(closed["data"]["by"], "gateway", "{closed}");
    assert!(counter(&closed["data"], "frames_out") < u64::from(frames), "{closed}");
    fast_peer.until_received(frames as usize).await;
    let numbers: Vec<_> = fast_peer.frames().iter().map(number).collect();
    assert!(numbers.into_iter().eq(0..frames), "the fast one got every frame, in order");
    let unhurt = over_fast.story();
    assert!(unhurt.iter().all(|params| kind_of(params) != "client.closed"), "{unhurt:#?}");
    assert!(fast_peer.is_open() && sender.is_open());
    let grown = peak.saturating_sub(before);
    assert!(grown < 48 * MIB, "a slow receiver cost {} MiB", grown / MIB);
    // What it was sent before is whole frames; then it ends, with the code if that still got through.
    assert!(matches!(slow_peer.close_code().await, Some(3413) | None));
}

/// A jammed receiver with a dropping policy, flooded; then it reads on. Returns the numbers of the
/// frames it got, and its sibling's story.
async fn drops(policy: &str, frames: u32) -> (Vec<u32>, Vec<Value>) {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let slow = Pair::make(node, "cam", "binary").await;
    let speaks = Pair::make(node, "cam", "binary").await;
    let mut peer = jammed(node, &slow).await;
    let mut sender = ClientSocket::open(node, &speaks).await;
    let mut sibling = Sibling::open(node, &slow).await;
    let queue = json!({"slow": policy, "queue_bytes": 262_144});
    sibling.must("client.set", queue).await;
    sibling.event("client.changed").await;
    let before = node.resident_bytes();
    flood(&mut sender, frames, 60_000).await;
    let grown = node.resident_bytes().saturating_sub(before) / MIB;
    assert!(grown < 48, "a jammed receiver cost {grown} MiB");
    let state = eventually("all frames went through the queue", async || {
        let state = sibling.must("pair.get", json!({})).await;
        let gone = ["frames_out", "queued_frames", "dropped_frames"];
        let all: u64 = gone.iter().map(|name| counter(&state, name)).sum();
        (all == u64::from(frames)).then_some(state)
    })
    .await;
    let queued = counter(&state, "queued_bytes");
    assert!(queued <= 262_144, "{queued} bytes wait in a queue of 262144");
    let dropped = counter(&state, "dropped_frames");
    assert!(dropped > 0, "{state}");
    assert_eq!(counter(&state, "dropped_bytes"), dropped * 60_000, "{state}");
    sibling.event("client.lagging").await;

    let mut numbers = Vec::new();
    let expected = u64::from(frames) - dropped;
    support::within("the rest of the frames", async {
        while (numbers.len() as u64) < expected {
            let (opcode, payload) = peer.frame().await.expect("a pipe that stays open");
            if opcode == 2 {
                numbers.push(number(&Message::binary(payload)));
            }
        }
    })
    .await;
    // It may have lagged more than once. All that was lost is told, and nothing twice.
    sender.binary(frames.to_be_bytes()).await;
    let (_, payload) = peer.frame().await.expect("a pipe that stays open");
    assert_eq!(number(&Message::binary(payload)), frames, "the pipe works on as before");
    let told = |all: &[Arrival]| {
        let caught_up = all.iter().filter_map(|arrival| match arrival {
            Arrival::Event(params) if kind_of(params) == "client.caught_up" => Some(params),
            _ => None,
        });
        caught_up.fold((0, 0), |(frames, bytes), params| {
            (frames + counter(params, "dropped_frames"), bytes + counter(params, "dropped_bytes"))
        })
    };
    // However often it lagged and caught up, all that was lost is told, once.
    sibling.until("the loss is told", |all| told(all).0 >= dropped).await;
    assert_eq!(told(&sibling.arrivals()), (dropped, dropped * 60_000), "{:#?}", sibling.story());
    (numbers, sibling.story())
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_oldest_keeps_the_newest() {
    let (numbers, story) = drops("drop_oldest", FLOOD).await;
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert_eq!(numbers[0], 0, "what was on its way is not taken back");
    assert!(numbers.ends_with(&[FLOOD - 3, FLOOD - 2, FLOOD - 1]), "{numbers:?}");
    assert!(story.iter().all(|params| kind_of(params) != "client.closed"), "{story:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_newest_keeps_what_came_first() {
    let (numbers, story) = drops("drop_newest", FLOOD).await;
    // While the kernel still takes some, there are holes; once it takes none, only what was first stays.
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert_eq!(numbers[0], 0, "{numbers:?}");
    assert!(numbers.last().is_some_and(|last| *last < FLOOD / 2), "the newest went: {numbers:?}");
    assert!(story.iter().all(|params| kind_of(params) != "client.closed"), "{story:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_flood_from_one_that_never_reads_costs_bounded_memory() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "cam", "binary").await;
    let before = node.resident_bytes();
    let ping = RawSocket::masked(0x89, &[b'p'; 125]);
    let many = ping.repeat(1_000);
    for (path, ticket, protocol) in
        [("/client", &pair.client_ticket, None), ("/sibling", &pair.sibling_ticket, Some("siblings.v1.json"))]
    {
        let mut peer = RawSocket::upgrade(node, &pair.path(path), ticket, protocol).await;
        let (limit, stall) = (Duration::from_secs(4), Duration::from_secs(1));
        let poured = peer.pour(&many, limit, stall).await;
        let grown = node.resident_bytes().saturating_sub(before);
        let (poured, grown) = (poured / MIB, grown / MIB);
        assert!(grown < 32, "{path}: {poured} MiB of pings cost {grown} MiB");
        assert_eq!(node.get("/livez").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sibling_that_does_not_read_is_bounded_and_then_told_what_it_lost() {
    // A short history, so that what is kept on purpose does not count.
    let settings = Settings::new().set("HISTORY_EVENTS", 64).set("HISTORY_SECONDS", 0);
    let cluster = Cluster::memory(&settings).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "hall", "text").await;
    let mut awake = Sibling::open_in(Codec::MessagePack, node, &pair).await;
    let stuck = pair.path("/sibling");
    let json = Some("siblings.v1.json");
    let mut deaf = RawSocket::upgrade(node, &stuck, &pair.sibling_ticket, json).await;
    let mut pipe = ClientSocket::open(node, &pair).await;
    let before = node.resident_bytes();
    // Some 12 MB of events.
    let padding = "x".repeat(3_000);
    let events = 4_000;
    for n in 0..events {
        let meta = json!({"meta": {"n": n, "padding": padding}});
        awake.ask("client.set", meta).await;
        if n % 50 == 49 {
            awake.until("the replies and the events", |all| all.len() > 2 * n).await;
        }
    }
    let grown = node.resident_bytes().saturating_sub(before) / MIB;
    assert!(grown < 32, "a deaf sibling cost {grown} MiB");
    awake.must("client.push", json!({"text": "still here"})).await;
    assert_eq!(pipe.next_text().await, "still here");

    // Now it reads: what it missed is announced, and the rest is there; or it was closed before.
    let story = awake.story();
    let last = story.last().expect("an event")["cursor"].clone();
    let mut told: Vec<Value> = Vec::new();
    while told.last().is_none_or(|params| params["cursor"] != last) {
        match support::within("an event or a close", deaf.frame()).await {
            Some((1, text)) => {
                let message: Value = serde_json::from_slice(&text).expect("JSON");
                told.push(message["params"].clone());
            }
            Some((8, payload)) => {
                let code = u16::from_be_bytes(payload[..2].try_into().expect("a code"));
                assert!(matches!(code, 1013 | 3408 | 3413), "closed with {code}");
                return;
            }
            Some(_) => {}
            None => panic!("a sibling socket ends with a close"),
        }
    }
    let lost = check_run(&told[1..], &story, Some(0));
    assert!(lost > 0, "12 MB fit into no buffer");
}
