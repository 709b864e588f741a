//! What agents tell each other's siblings: to one, to all, asleep or awake, and to how many it was told.

mod support;

use rstest::rstest;
use serde_json::{Value, json};
use support::{Agent, ClientSocket, Cluster, Kind, Pair, Settings, Sibling, Sse, eventually, kind_of, until};

/// Agents in a room, the pipe of each on one node and its sibling on another.
async fn agents<const N: usize>(cluster: &Cluster, room: &str) -> [Agent; N] {
    let mut all = Vec::new();
    for n in 0..N {
        let body = json!({"room": room, "format": "text"});
        all.push(Agent::enter(cluster.node(n), cluster.node(n + 1), body).await);
    }
    all.try_into().unwrap_or_else(|_| panic!("{N} agents"))
}

fn signals(sibling: &Sibling) -> Vec<Value> {
    sibling.story().into_iter().filter(|params| kind_of(params) == "signal").collect()
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn all_others_are_told_once_and_counted(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let [mut ann, mut ben, mut cat] = agents(&cluster, "hall").await;
    let [mut dan] = agents(&cluster, "attic").await;
    let mut also_ben = Sibling::open(cluster.node(1), &ben.pair).await;
    let bearer = format!("Bearer {}", cat.pair.sibling_ticket);
    let headers = [("Authorization", bearer.as_str())];
    let mut listens = Sse::open(cluster.node(2), &cat.pair.path("/events"), &headers).await;
    let data = json!({"do": ["it", null, 7], "ü": "\u{1F980}"});

    let sent = ann.sibling.must("room.signal", json!({"to": "room", "data": data, "reply_to": "r1"})).await;
    assert_eq!(sent["delivered"], 4, "two siblings, one more, and an event stream: {sent}");
    for sibling in [&mut ben.sibling, &mut also_ben, &mut cat.sibling] {
        let told = sibling.event("signal").await;
        let expected = json!({
            "id": sent["id"], "from": ann.pair.id, "to": "room", "data": data, "reply_to": "r1",
        });
        assert_eq!(told["data"], expected);
        assert!(told["cause"]["sibling"].is_string(), "{told}");
    }
    let heard = eventually_kind(&mut listens, "signal").await;
    assert_eq!(heard["data"]["id"], sent["id"]);

    // To one, which answers.
    let to_ben = json!({"to": ben.pair.id, "data": "only you", "reply_to": "r2"});
    let sent = ann.sibling.must("room.signal", to_ben).await;
    assert_eq!(sent["delivered"], 2, "{sent}");
    for sibling in [&mut ben.sibling, &mut also_ben] {
        let told = sibling.event("signal").await;
        assert_eq!((&told["data"]["data"], &told["data"]["to"]), (&json!("only you"), &json!(ben.pair.id)));
    }
    let answer = json!({"to": ann.pair.id, "data": "yes", "reply_to": "r2"});
    assert_eq!(ben.sibling.must("room.signal", answer).await["delivered"], 1);
    let told = ann.sibling.event("signal").await;
    assert_eq!(told["data"]["reply_to"], "r2", "{told}");
    assert!(told["data"].get("reply_to").is_some());

    // Who does not watch is told what is for it alone, and is not counted for the rest.
    cat.sibling.must("room.unwatch", json!({"signals": true})).await;
    cat.sibling.event("client.changed").await;
    // The stream is of the same pair, and hears of that by its own way.
    eventually_kind(&mut listens, "client.changed").await;
    assert_eq!(ann.sibling.must("room.signal", json!({"to": "room", "data": 1})).await["delivered"], 2);
    let to_cat = json!({"to": cat.pair.id, "data": 2});
    assert_eq!(ann.sibling.must("room.signal", to_cat).await["delivered"], 2, "the stream as well");
    assert_eq!(cat.sibling.event("signal").await["data"]["data"], 2);
    assert_eq!(signals(&cat.sibling).len(), 2);
    assert_eq!(signals(&ann.sibling).len(), 1, "nobody is told of its own");

    // Elsewhere, ended, unknown: all the same.
    ben.sibling.must("pair.end", json!({})).await;
    let nobody = Pair::make(cluster.node(0), "attic", "text").await.id;
    let mut refusals = Vec::new();
    for to in [&dan.pair.id, &ben.pair.id, &nobody, &"pair_00000000000000000000000000".to_owned()] {
        let refused = ann.sibling.call("room.signal", json!({"to": to, "data": 1})).await.expect_err("not here");
        refusals.push((refused.code, refused.message.replace(to.as_str(), "…")));
    }
    assert_eq!(refusals[0].0, -32004, "{refusals:?}");
    assert!(refusals.iter().all(|refused| *refused == refusals[0]), "{refusals:?}");
    assert_eq!(signals(&dan.sibling), Vec::<Value>::new());
    assert_eq!(dan.sibling.must("room.signal", json!({"to": "room", "data": 1})).await["delivered"], 0);
    for pipe in [&ann.pipe, &cat.pipe, &dan.pipe] {
        assert_eq!(pipe.received(), 0, "the pipe is pure");
    }
}

async fn eventually_kind(stream: &mut Sse, kind: &str) -> Value {
    loop {
        let told = stream.next().await;
        if kind_of(&told.data) == kind {
            return told.data;
        }
    }
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn who_sleeps_is_told_when_it_wakes(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let [mut ann, ben] = agents(&cluster, "hall").await;
    let cursor = ben.sibling.cursor();
    let Agent { pair, sibling, pipe } = ben;
    let mut awake = Sibling::open(cluster.node(0), &pair).await;
    sibling.sleep().await;
    // Its client goes as well: it is in the room by what is known of it.
    pipe.close(1000, "bye").await;
    awake.event("client.closed").await;
    let mut sent = Vec::new();
    for n in 0..5 {
        for to in ["room", pair.id.as_str()] {
            let reply = ann.sibling.must("room.signal", json!({"to": to, "data": n})).await;
            assert_eq!(reply["delivered"], 1);
            sent.push(reply["id"].clone());
            // Events of one millisecond have no order between the two histories.
            let then = std::time::SystemTime::now() + std::time::Duration::from_millis(1);
            until("the clock has moved", || std::time::SystemTime::now() > then).await;
        }
    }
    awake.until("all signals", |all| all.len() >= 12).await;
    let again = ClientSocket::open(cluster.node(2), &pair).await;
    awake.event("client.opened").await;
    for node in 0..3 {
        let mut woken = Sibling::wake(cluster.node(node), &pair, &cursor).await;
        woken.event("client.opened").await;
        let told = signals(&woken);
        assert_eq!(told, signals(&awake), "field for field, and in the same order");
        let ids: Vec<_> = told.iter().map(|params| params["data"]["id"].clone()).collect();
        assert_eq!(ids.iter().filter(|id| sent.contains(id)).count(), 10);
        assert_eq!(ids, sent, "what happened first is told first");
        // From its last cursor nothing comes again.
        let mut later = Sibling::wake(cluster.node(node + 1), &pair, &woken.cursor()).await;
        let key = format!("met {node}");
        awake.must("client.set", json!({"meta": {}, "key": key})).await;
        later.event_where("client.changed", |params| params["cause"]["key"] == key).await;
        assert!(signals(&later).is_empty(), "{:?}", later.events());
    }
    // Who came later is told nothing of before.
    let late = Pair::make(cluster.node(0), "hall", "text").await;
    let mut woken = Sibling::wake(cluster.node(1), &late, "start").await;
    ann.sibling.must("room.signal", json!({"to": "room", "data": "now"})).await;
    assert_eq!(woken.event("signal").await["data"]["data"], "now");
    assert_eq!(signals(&woken).len(), 1);
    drop(again);
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_signals_once(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let [ann, mut ben] = agents(&cluster, "hall").await;
    let signal = json!({"to": "room", "data": "once", "key": "k"});
    // Without any socket of the sender's own.
    let Agent { pair, sibling, pipe } = ann;
    pipe.close(1000, "bye").await;
    drop(sibling);
    let sends = (0..6).map(|n| pair.command(cluster.node(n), "room.signal", signal.clone()));
    let replies = futures_util::future::join_all(sends).await;
    let first = replies[0].clone().expect("a reply");
    assert!(replies.iter().all(|reply| reply.as_ref() == Ok(&first)), "{replies:?}");
    assert_eq!(first["delivered"], 1);
    let told = ben.sibling.event("signal").await;
    assert_eq!((&told["data"]["id"], &told["cause"]["key"]), (&first["id"], &json!("k")));
    pair.command(cluster.node(0), "room.signal", json!({"to": "room", "data": "end"})).await.expect("it is told");
    ben.sibling.event_where("signal", |params| params["data"]["data"] == "end").await;
    assert_eq!(signals(&ben.sibling).len(), 2);

    let large = json!({"to": "room", "data": "x".repeat(17_000)});
    assert_eq!(pair.command(cluster.node(0), "room.signal", large).await.expect_err("too large").code, -32013);
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn what_was_dealt_with_is_remembered(#[case] kind: Kind) {
    let settings = Settings::new().set("HISTORY_EVENTS", 1_000);
    let cluster = Cluster::start(kind, &settings).await;
    let [mut ann, mut ben] = agents(&cluster, "hall").await;
    let unread = async |node| ben.pair.state(cluster.node(node)).await["unread"].clone();
    assert_eq!(unread(0).await, Value::Null);
    let place = |sibling: &Sibling| sibling.cursor();

    let before = place(&ben.sibling);
    ben.sibling.pour(60, |n| ("client.set", json!({"meta": {"n": n}}))).await;
    ben.sibling.event_where("client.changed", |params| params["data"]["meta"]["n"] == 59).await;
    ann.sibling.must("room.signal", json!({"to": "room", "data": 1})).await;
    ben.sibling.event("signal").await;
    let acked = ben.sibling.must("events.ack", json!({"cursor": before})).await;
    assert_eq!(acked["unread"], 61, "the changes, and the signal: {acked}");
    let last = place(&ben.sibling);
    assert_eq!(ben.sibling.must("events.ack", json!({"cursor": last})).await["unread"], 0);
    for node in 0..3 {
        assert_eq!(unread(node).await, 0);
    }
    assert_eq!(ben.sibling.must("events.ack", json!({"cursor": before})).await["unread"], 0, "never backwards");
    // What was before it is given up, but for the newest.
    let mut woken = Sibling::wake(cluster.node(2), &ben.pair, "start").await;
    woken.event("signal").await;
    let told = woken.events();
    assert_eq!((kind_of(&told[1]), &told[1]["data"]["lost"]), ("gap", &json!(61 - 32)), "{}", told[1]);
    assert_eq!(woken.story()[1..], ben.sibling.story()[ben.sibling.story().len() - 32..]);

    // While nobody has a client socket, too.
    let Agent { pair, pipe, mut sibling } = ben;
    pipe.close(1000, "bye").await;
    sibling.event("client.closed").await;
    assert_eq!(pair.state(cluster.node(1)).await["unread"], 1);
    assert_eq!(sibling.must("events.ack", json!({"cursor": sibling.cursor(), "key": "a"})).await["unread"], 0);
    assert_eq!(pair.state(cluster.node(0)).await["unread"], 0);
    let foreign = ann.sibling.cursor();
    for bad in [foreign.as_str(), "AAAA", ""] {
        let refused = sibling.call("events.ack", json!({"cursor": bad})).await.expect_err("no cursor of its own");
        assert_eq!(refused.code, -32004, "{refused:?}");
    }
    eventually("it is remembered over a new socket", async || {
        let _pipe = ClientSocket::open(cluster.node(2), &pair).await;
        (pair.state(cluster.node(1)).await["unread"].as_u64() > Some(0)).then_some(())
    })
    .await;
}
