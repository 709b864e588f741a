//! A pipe that is handed over to another socket, and loses no frame.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use rstest::rstest;
use serde_json::{Value, json};
use support::{
    Agent, ClientSocket, Cluster, Dial, Gateway, Kind, Pair, RawSocket, Settings, Sibling, count_up, kind_of,
    numbers, specify,
};
use tokio_tungstenite::tungstenite::Message;

/// Opens the socket that a switch asks for.
async fn with_ticket(node: &Gateway, pair: &Pair, switched: &Value, query: &str) -> ClientSocket {
    let ticket = switched["client"]["ticket"].as_str().expect("a fresh ticket");
    ClientSocket::over(Dial::to(node, pair.path("/client")).bearer(ticket).queries(query).open().await)
}

/// The kinds of what a sibling was told of its pipe, in order.
fn line(sibling: &Sibling) -> Vec<String> {
    let kinds = sibling.story();
    kinds.iter().map(|params| kind_of(params).to_owned()).filter(|kind| kind.starts_with("client.")).collect()
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_keeps_nothing_still_loses_nothing(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let mut speaker = Agent::enter(a, b, json!({"room": "plain", "format": "text"})).await;
    let Agent { pair, mut pipe, mut sibling } = Agent::enter(b, a, json!({"room": "plain"})).await;
    count_up(&mut speaker.pipe, 0, 10).await;
    pipe.until_received(10).await;
    let switched = sibling.must("client.switch", json!({"key": "s"})).await;
    assert_eq!(sibling.must("client.switch", json!({"key": "s"})).await, switched, "one key, one switch");
    let closed = pipe.closed().await;
    assert_eq!(closed.code, Some(3307), "{closed:?}");
    let told = sibling.event("client.closed").await;
    assert_eq!((&told["data"]["by"], &told["data"]["clean"]), (&json!("sibling"), &json!(true)), "{told}");
    assert_eq!(told["cause"]["key"], "s");
    count_up(&mut speaker.pipe, 10, 30).await;
    let state = sibling.must("pair.get", json!({})).await;
    assert_eq!(state["client"], "detached", "{state}");
    let mut pipe = with_ticket(b, &pair, &switched, "").await;
    pipe.until_received(20).await;
    count_up(&mut speaker.pipe, 30, 40).await;
    pipe.until_received(30).await;
    assert_eq!(numbers(&pipe), (10..40).collect::<Vec<_>>());
    let resumed = sibling.event("client.resumed").await;
    assert_eq!(resumed["data"]["exact"], true, "{resumed}");
    assert_eq!(resumed["data"]["lost"], 0, "{resumed}");
    let told = ["client.opened", "client.switching", "client.closed", "client.opened", "client.resumed"];
    assert_eq!(line(&sibling), told);
    // It still speaks, too.
    pipe.text("0").await;
    assert_eq!(speaker.pipe.next_text().await, "0");
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn what_the_peer_still_sends_arrives(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    specify(a, "kept", json!({"format": "text", "history": {"messages": 10_000, "seconds": 60}})).await;
    for room in ["plain", "kept"] {
        let mut ear = Agent::enter(b, a, json!({"room": room, "format": "text"})).await;
        let Agent { pair, mut pipe, mut sibling } = Agent::enter(a, b, json!({"room": room})).await;
        // It goes on sending until it hears that it is to come back.
        let mut sent = 0;
        let id = sibling.ask("client.switch", json!({})).await;
        while pipe.is_open() && pipe.try_send(Message::text(sent.to_string())).await {
            sent += 1;
        }
        let switched = sibling.reply(id).await.expect("it is switched");
        // It stays until it is let go: what a peer resets is lost in its own kernel.
        assert_eq!(pipe.closed().await.code, Some(3307));
        let mut next = with_ticket(a, &pair, &switched, "").await;
        next.text("1000000").await;
        let closed = sibling.event("client.closed").await;
        let taken = closed["data"]["frames_in"].as_u64().expect("a count") as usize;
        ear.pipe.until_received(taken + 1).await;
        let mut heard = numbers(&ear.pipe);
        assert_eq!(heard.pop(), Some(1_000_000), "{room}");
        assert_eq!(heard, (0..taken).collect::<Vec<_>>(), "{room}");
        // Only what it sent when it had the close already may be missing: this client looks before each frame.
        assert!(taken + 1 >= sent, "{room}: {taken} of {sent}: {closed}");
    }
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_switch_changes_room_and_format(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (a, b, c) = (cluster.node(0), cluster.node(1), cluster.node(2));
    specify(a, "kept", json!({"format": "binary", "history": {"messages": 10_000, "seconds": 60}})).await;
    for room in ["binary", "kept"] {
        let mut texts = Agent::enter(a, b, json!({"room": "words", "format": "text"})).await;
        let mut bytes = Agent::enter(b, c, json!({"room": room, "format": "binary"})).await;
        let mut witness = Agent::enter(c, a, json!({"room": room, "format": "binary"})).await;
        let Agent { pair, mut pipe, mut sibling } =
            Agent::enter(c, a, json!({"room": "words", "format": "text"})).await;
        texts.pipe.text("before").await;
        pipe.until_received(1).await;
        let refused = sibling.call("client.switch", json!({"room": room})).await.unwrap_err();
        assert_eq!(refused.code, -32016, "{refused:?}");
        let refused = sibling.call("client.switch", json!({"room": "words", "format": "binary"})).await.unwrap_err();
        assert_eq!(refused.code, -32016, "{refused:?}");
        assert!(pipe.is_open(), "what is refused changes nothing");

        let switched = sibling.must("client.switch", json!({"room": room, "format": "binary"})).await;
        assert_eq!((&switched["room"], &switched["format"]), (&json!(room), &json!("binary")), "{switched}");
        assert_eq!(pipe.closed().await.code, Some(3307));
        texts.pipe.text("for nobody").await;
        for n in 0..20u8 {
            bytes.pipe.binary([n]).await;
        }
        witness.pipe.until_received(20).await;
        let mut pipe = with_ticket(c, &pair, &switched, "received=1").await;
        let opened = sibling.event_where("client.opened", |params| params["data"]["epoch"] == 2).await;
        assert_eq!((&opened["data"]["room"], &opened["data"]["format"]), (&json!(room), &json!("binary")));
        pipe.until_received(20).await;
        assert_eq!(pipe.frames(), (0..20u8).map(|n| Message::binary([n].to_vec())).collect::<Vec<_>>(), "{room}");
        let resumed = sibling.event("client.resumed").await;
        assert_eq!(resumed["data"], json!({"epoch": 2, "replayed": 20, "lost": 0, "exact": true}));
        let members = bytes.sibling.must("room.members", json!({})).await;
        assert_eq!(members["members"].as_array().map(Vec::len), Some(3), "{members}");
    }
}

/// The next socket may be asked for before the last one has noted what is agreed now: whether it says what it speaks or
/// takes what the switch said, it is let in.
#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn the_next_socket_may_come_before_the_last_has_gone(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let _bytes = Agent::enter(a, b, json!({"room": "binary", "format": "binary"})).await;
    for query in ["", "format=binary"] {
        let pair = Pair::make(a, "words", "text").await;
        let mut last = RawSocket::upgrade(a, &pair.path("/client"), &pair.client_ticket, None).await;
        let mut sibling = Sibling::open(b, &pair).await;
        let _stays = Agent::enter(b, a, json!({"room": "words", "format": "text"})).await;
        let switched = sibling.must("client.switch", json!({"room": "binary", "format": "binary"})).await;
        assert_eq!(last.close_code().await, Some(3307));
        // Its peer has heard the close and says nothing: until it does, the last socket has the pair.
        let answers = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            last.write(&RawSocket::masked(0x88, &3307u16.to_be_bytes())).await;
        };
        tokio::join!(with_ticket(b, &pair, &switched, query), answers);
        let opened = sibling.event_where("client.opened", |params| params["data"]["epoch"] == 2).await;
        assert_eq!((&opened["data"]["room"], &opened["data"]["format"]), (&json!("binary"), &json!("binary")));
    }
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_ends_with_the_switch_and_what_waited_goes_first(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    specify(a, "kept", json!({"format": "text", "history": {}})).await;
    for (room, policy) in [("plain", "buffer"), ("plain", "hold"), ("kept", "buffer")] {
        let mut other = Agent::enter(a, b, json!({"room": room, "format": "text"})).await;
        let mut witness = Agent::enter(b, a, json!({"room": room})).await;
        let Agent { pair, mut pipe, mut sibling } = Agent::enter(b, a, json!({"room": room})).await;
        sibling.must("client.pause", json!({"direction": "both", "policy": policy})).await;
        count_up(&mut other.pipe, 0, 5).await;
        count_up(&mut pipe, 100, 105).await;
        witness.pipe.until_received(5).await;
        let switched = sibling.must("client.switch", json!({"subprotocol": "mqtt"})).await;
        assert_eq!(switched["subprotocol"], "mqtt", "{switched}");
        let unpaused = sibling.event("client.unpaused").await;
        assert_eq!(unpaused["data"]["direction"], "both", "{unpaused}");
        pipe.closed().await;
        assert_eq!(numbers(&pipe), (0..5).collect::<Vec<_>>(), "{room}, {policy}");
        other.pipe.until_received(5).await;
        count_up(&mut other.pipe, 5, 10).await;
        let mut pipe = with_ticket(b, &pair, &switched, "received=5").await;
        pipe.until_received(5).await;
        assert_eq!(numbers(&pipe), (5..10).collect::<Vec<_>>(), "{room}, {policy}");
        let resumed = sibling.event("client.resumed").await;
        assert_eq!((&resumed["data"]["lost"], &resumed["data"]["exact"]), (&json!(0), &json!(true)));
        let state = sibling.must("pair.get", json!({})).await;
        assert_eq!(state["paused"], json!({"in": null, "out": null}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded_and_an_overflow_is_told() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let mut speaker = Agent::enter(a, b, json!({"room": "plain", "format": "text"})).await;
    let Agent { pair, pipe, mut sibling } = Agent::enter(b, a, json!({"room": "plain"})).await;
    sibling.must("client.set", json!({"queue_bytes": 1_024})).await;
    let switched = sibling.must("client.switch", json!({})).await;
    sibling.event("client.closed").await;
    drop(pipe);
    for n in 0..30 {
        speaker.pipe.text(format!("{n:<98}")).await;
    }
    // Another pipe in the same place: when it has all, the waiting one has what it will get.
    let mut witness = Agent::enter(b, b, json!({"room": "plain"})).await;
    speaker.pipe.text("last").await;
    witness.pipe.until_received(1).await;
    let mut pipe = with_ticket(b, &pair, &switched, "").await;
    let resumed = sibling.event("client.resumed").await;
    let (replayed, lost) = (&resumed["data"]["replayed"], &resumed["data"]["lost"]);
    let (replayed, lost) = (replayed.as_u64().expect("a count"), lost.as_u64().expect("a count"));
    assert!(lost > 0 && replayed + lost == 31, "{resumed}");
    let replayed = usize::try_from(replayed).expect("a count");
    pipe.until_received(replayed).await;
    let kept: Vec<usize> = pipe.texts().iter().map(|text| text.trim().parse().expect("a number")).collect();
    assert_eq!(kept, (0..replayed).collect::<Vec<_>>(), "the first of them, without a hole");
    speaker.pipe.text("after").await;
    pipe.until_received(replayed + 1).await;
    assert!(pipe.is_open());

    let hasty = Pair::from(a, json!({"room": "plain", "linger": 0})).await;
    let _pipe = ClientSocket::open_and_told(a, &hasty).await;
    let refused = hasty.command(a, "client.switch", json!({})).await.unwrap_err();
    assert_eq!(refused.code, -32009, "{refused:?}");
}

/// Says numbers until it is told to stop; returns how many.
async fn count_until(mut pipe: ClientSocket, name: u8, stop: Arc<AtomicBool>) -> u64 {
    let (mut said, mut tick) = (0u64, tokio::time::interval(Duration::from_millis(1)));
    while !stop.load(SeqCst) {
        tick.tick().await;
        for _ in 0..4 {
            pipe.binary([&[name], &said.to_be_bytes()[..]].concat()).await;
            said += 1;
        }
    }
    pipe.close(1000, "").await;
    said
}

/// Speakers on every node, among them the old and the new one, while a pipe goes from node to node.
#[rstest]
#[case::as_they_are_sent(json!({"format": "binary"}))]
#[case::in_one_order(json!({"format": "binary", "order": "room"}))]
#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_crosses_nodes_and_loses_no_frame(#[case] spec: Value) {
    let cluster = Cluster::redis(3, &Settings::new()).await;
    specify(cluster.node(0), "plain", spec).await;
    let body = json!({"room": "plain", "format": "binary"});
    let Agent { pair, mut pipe, mut sibling } = Agent::enter(cluster.node(0), cluster.node(1), body).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut speakers = Vec::new();
    for n in 0..3u8 {
        let Agent { pipe, .. } =
            Agent::enter(cluster.node(n.into()), cluster.node(0), json!({"room": "plain", "format": "binary"})).await;
        speakers.push(tokio::spawn(count_until(pipe, n, Arc::clone(&stop))));
    }
    let mut frames = Vec::new();
    for round in 1..=12 {
        pipe.until_received(100).await;
        let switched = sibling.must("client.switch", json!({})).await;
        assert_eq!(pipe.closed().await.code, Some(3307));
        let received = format!("received={}", pipe.received());
        frames.extend(pipe.frames());
        // The next node for two rounds, then the one before it.
        let node = cluster.node(if round % 3 == 0 { round + 2 } else { round });
        pipe = with_ticket(node, &pair, &switched, &received).await;
        let resumed = sibling.event("client.resumed").await;
        assert_eq!((&resumed["data"]["lost"], &resumed["data"]["exact"]), (&json!(0), &json!(true)), "{round}");
    }
    pipe.until_received(100).await;
    stop.store(true, SeqCst);
    let said = futures_util::future::join_all(speakers).await;
    let said: Vec<u64> = said.into_iter().map(|said| said.expect("a speaker")).collect();
    pipe.until_received(said.iter().sum::<u64>() as usize - frames.len()).await;
    frames.extend(pipe.frames());
    let mut heard = [const { Vec::new() }; 3];
    for frame in frames {
        let frame = frame.into_data();
        heard[usize::from(frame[0])].push(u64::from_be_bytes(frame[1..].try_into().expect("a number")));
    }
    for (heard, said) in heard.iter().zip(said) {
        assert!(heard.iter().copied().eq(0..said), "{} frames of {said}", heard.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_is_told_lost_when_it_can_not_cross() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let mut speaker = Agent::enter(a, b, json!({"room": "plain", "format": "text"})).await;
    let Agent { pair, pipe, mut sibling } = Agent::enter(b, a, json!({"room": "plain"})).await;
    let switched = sibling.must("client.switch", json!({})).await;
    sibling.event("client.closed").await;
    drop(pipe);
    speaker.pipe.text("lost").await;
    b.signal("STOP");
    let mut pipe = with_ticket(a, &pair, &switched, "received=0").await;
    let resumed = sibling.event("client.resumed").await;
    assert_eq!(resumed["data"], json!({"epoch": 2, "replayed": 0, "lost": null, "exact": false}));
    b.signal("CONT");
    speaker.pipe.text("found").await;
    assert_eq!(pipe.next_text().await, "found");
}
