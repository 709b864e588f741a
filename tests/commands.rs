//! Every command, with its result, its effect on the wire, and its event: in JSON, in MessagePack and
//! over HTTP, on one node and across two.

mod support;

use rstest::rstest;
use serde_json::{Value, json};
use support::{ClientSocket, Cluster, Codec, Fault, Kind, Pair, Settings, Sibling, counter, deep, eventually};
use tokio_tungstenite::tungstenite::Message;

/// How commands are given.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Socket(Codec),
    Http,
}

const JSON: Way = Way::Socket(Codec::Json);
const PACK: Way = Way::Socket(Codec::MessagePack);

/// A pair with a live pipe, a sibling that listens, and one of the ways to command it. With two
/// nodes, the pipe is on one and the commands come from the other.
struct Scene {
    cluster: Cluster,
    way: Way,
    pair: Pair,
    pipe: ClientSocket,
    sibling: Sibling,
}

impl Scene {
    async fn start(kind: Kind, way: Way, format: &str) -> Self {
        let cluster = Cluster::start(kind, &Settings::new()).await;
        let pair = Pair::make(cluster.node(1), "hall", format).await;
        let codec = if way == PACK { Codec::MessagePack } else { Codec::Json };
        let mut sibling = Sibling::open_in(codec, cluster.node(1), &pair).await;
        let pipe = ClientSocket::open(cluster.node(0), &pair).await;
        sibling.event("client.opened").await;
        Self { cluster, way, pair, pipe, sibling }
    }

    async fn call(&mut self, method: &str, params: Value) -> Result<Value, Fault> {
        match self.way {
            Way::Socket(_) => self.sibling.call(method, params).await,
            Way::Http => self.pair.command(self.cluster.node(1), method, params).await,
        }
    }

    async fn must(&mut self, method: &str, params: Value) -> Value {
        let outcome = self.call(method, params.clone()).await;
        outcome.unwrap_or_else(|fault| panic!("{method} {params} failed: {fault:?}"))
    }

    /// One more member of a room, on the node of the pipe or on the other.
    async fn member(&self, node: usize, room: &str) -> ClientSocket {
        let format = self.pair.made["format"].as_str().expect("a format");
        let pair = Pair::make(self.cluster.node(node), room, format).await;
        ClientSocket::open(self.cluster.node(node), &pair).await
    }

    /// One frame from `from` to `to`: both are in the room as soon as their sockets are open.
    async fn acquaint(from: &mut ClientSocket, to: &mut ClientSocket) {
        let met = to.received();
        from.text("met!").await;
        to.until_received(met + 1).await;
    }
}

#[rstest]
#[case::alone(Kind::Memory)]
#[case::across(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn get_tells_the_state(#[case] kind: Kind, #[values(JSON, PACK, Way::Http)] way: Way) {
    let mut scene = Scene::start(kind, way, "text").await;
    let state = scene.must("pair.get", json!({})).await;
    assert_eq!(state["room"], "hall", "{state}");
    assert_eq!(state["format"], "text", "{state}");
    assert_eq!(state["epoch"], 1, "{state}");
    assert_eq!(state["client"], "live", "{state}");
    assert!(state["node"].is_string(), "{state}");
    for field in ["counters", "rtt_ms", "paused", "settings", "siblings"] {
        assert!(state.get(field).is_some(), "{field} in {state}");
    }
    for name in ["frames_in", "frames_out", "bytes_in", "bytes_out", "queued_frames"] {
        assert_eq!(counter(&state, name), 0, "{state}");
    }
    assert_eq!(counter(&state, "dropped_frames"), 0, "{state}");
    let over_http = scene.pair.state(scene.cluster.node(0)).await;
    assert_eq!(over_http["client"], "live", "{over_http}");
    assert!(over_http.as_object().is_some_and(|all| all.keys().eq(state.as_object().expect("an object").keys())));

    let mut member = scene.member(1, "hall").await;
    Scene::acquaint(&mut member, &mut scene.pipe).await;
    let before = scene.pipe.received() as u64;
    scene.pipe.text("four").await;
    member.until_received(1).await;
    let state = scene.must("pair.get", json!({})).await;
    assert_eq!((counter(&state, "frames_in"), counter(&state, "bytes_in")), (1, 4), "{state}");
    let out = counter(&state, "frames_out");
    assert!(out >= before, "{before} were received of {out}");
    assert_eq!(counter(&state, "bytes_out"), 4 * out, "{state}");
}

#[rstest]
#[case::alone(Kind::Memory)]
#[case::across(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn send_speaks_as_the_client_and_push_to_it(#[case] kind: Kind, #[values(JSON, PACK, Way::Http)] way: Way) {
    let mut scene = Scene::start(kind, way, "any").await;
    let mut members = [scene.member(0, "hall").await, scene.member(1, "hall").await];
    let first = scene.must("client.send", json!({"text": "h\u{e9}"})).await;
    let second = scene.must("client.send", json!({"base64": "AP/+"})).await;
    let seq = |reply: &Value| reply["seq"].as_u64().unwrap_or_else(|| panic!("no seq: {reply}"));
    assert!(seq(&second) > seq(&first), "{first} {second}");
    for member in &mut members {
        member.until_received(2).await;
        assert_eq!(member.frames(), [Message::text("h\u{e9}"), Message::binary(vec![0, 255, 254])]);
    }
    assert_eq!(scene.pipe.received(), 0, "a sender does not hear itself");

    for (n, (params, frame)) in [
        (json!({"text": "mine"}), Message::text("mine")),
        (json!({"base64": "AQI="}), Message::binary(vec![1, 2])),
        (json!({"text": ""}), Message::text("")),
    ]
    .into_iter()
    .enumerate()
    {
        let pushed = scene.must("client.push", params).await;
        assert_eq!(pushed["position"], n + 1, "the frame's own number: {pushed}");
        assert_eq!(scene.pipe.next().await, frame);
    }
    if way == PACK {
        // Bytes as they are, which only MessagePack can write.
        #[derive(serde::Serialize)]
        struct Call<'a> {
            jsonrpc: &'a str,
            id: u64,
            method: &'a str,
            params: Params<'a>,
        }
        #[derive(serde::Serialize)]
        struct Params<'a> {
            binary: &'a serde_bytes::Bytes,
        }
        let binary = serde_bytes::Bytes::new(&[9, 0, 200]);
        let (jsonrpc, method) = ("2.0", "client.push");
        let call = Call { jsonrpc, id: 7_000, method, params: Params { binary } };
        let bytes = rmp_serde::to_vec_named(&call).expect("a call to encode");
        scene.sibling.send(Message::binary(bytes)).await;
        assert_eq!(scene.sibling.reply(7_000).await.expect("a push")["position"], 4);
        assert_eq!(scene.pipe.next().await, Message::binary(vec![9, 0, 200]));
    }
    assert!(scene.sibling.story().len() == 1, "frames are no events: {:?}", scene.sibling.story());
}

#[rstest]
#[case::alone(Kind::Memory)]
#[case::across(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn move_tells_the_exact_place(#[case] kind: Kind, #[values(JSON, PACK, Way::Http)] way: Way) {
    let mut scene = Scene::start(kind, way, "text").await;
    let mut hall = scene.member(1, "hall").await;
    let mut attic = scene.member(1, "attic").await;
    Scene::acquaint(&mut hall, &mut scene.pipe).await;
    hall.text("the last of the hall").await;
    eventually("it came", async || {
        let last = scene.pipe.texts().pop();
        (last.as_deref() == Some("the last of the hall")).then_some(())
    })
    .await;
    let here = scene.pipe.received();
    let moved = scene.must("client.move", json!({"room": "attic", "key": "m"})).await;
    assert_eq!(moved, json!({"from": "hall", "to": "attic", "position": here}));
    let event = scene.sibling.event("client.moved").await;
    assert_eq!(event["data"]["position"], here, "{event}");
    assert_eq!((&event["data"]["from"], &event["data"]["to"]), (&json!("hall"), &json!("attic")));
    assert_eq!(event["cause"]["key"], "m", "{event}");

    // The reply came after the effect: whoever speaks now is heard, or is not.
    hall.text("too late").await;
    attic.text("hello from above").await;
    scene.pipe.until_received(here + 1).await;
    assert_eq!(scene.pipe.texts()[here], "hello from above");
    scene.pipe.text("thanks").await;
    assert_eq!(attic.next_text().await, "thanks");
    let room = scene.must("room.get", json!({})).await;
    assert_eq!(deep(&room, "room").or(deep(&room, "name")), Some(&json!("attic")), "{room}");
    assert_eq!(scene.must("pair.get", json!({})).await["room"], "attic");
    assert!(!hall.texts().contains(&"thanks".to_owned()));

    // A room that speaks something else is no place for this pipe, which stays where it is.
    let pair = Pair::make(scene.cluster.node(0), "cam", "binary").await;
    let _cam = ClientSocket::open(scene.cluster.node(0), &pair).await;
    let fault = scene.call("client.move", json!({"room": "cam"})).await.expect_err("no common format");
    assert_eq!((fault.code, &fault.data["code"]), (-32016, &json!("no_common_format")), "{fault:?}");
    attic.text("still here").await;
    scene.pipe.until_received(here + 2).await;
}

#[rstest]
#[case::alone(Kind::Memory)]
#[case::across(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn pause_and_resume_keep_or_drop_and_count(
    #[case] kind: Kind,
    #[values(JSON, PACK, Way::Http)] way: Way,
    #[values("buffer", "drop")] policy: &str,
) {
    let mut scene = Scene::start(kind, way, "text").await;
    let mut member = scene.member(0, "hall").await;
    member.text("0").await;
    scene.pipe.until_received(1).await;

    // Towards the client.
    let pause = json!({"direction": "out", "policy": policy, "key": "p"});
    let paused = scene.must("client.pause", pause).await;
    assert_eq!(paused["position"], 1, "{paused}");
    let event = scene.sibling.event("client.paused").await;
    assert_eq!(event["data"]["direction"], "out", "{event}");
    assert_eq!(event["data"]["policy"], policy, "{event}");
    assert_eq!(event["cause"]["key"], "p", "{event}");
    for word in ["1", "2", "3"] {
        member.text(word).await;
    }
    let waits = if policy == "buffer" { "queued_frames" } else { "dropped_frames" };
    eventually("three frames reached the pause", async || {
        (counter(&scene.must("pair.get", json!({})).await, waits) == 3).then_some(())
    })
    .await;
    assert_eq!(scene.pipe.received(), 1, "a paused pipe is silent");
    let resumed = scene.must("client.resume", json!({"direction": "out", "key": "r"})).await;
    let (kept, lost) = if policy == "buffer" { (3, 0) } else { (0, 3) };
    assert_eq!(resumed["buffered"], kept, "{resumed}");
    assert_eq!(resumed["dropped"], lost, "{resumed}");
    assert_eq!(resumed["position"], 1, "{resumed}");
    let event = scene.sibling.event("client.unpaused").await;
    assert_eq!(event["data"]["direction"], "out", "{event}");
    assert_eq!(event["cause"]["key"], "r", "{event}");
    member.text("4").await;
    let all = ["0", "1", "2", "3", "4"];
    let expected = if policy == "buffer" { &all[..] } else { &["0", "4"] };
    scene.pipe.until_received(expected.len()).await;
    assert_eq!(scene.pipe.texts(), expected);

    // From the client.
    scene.pipe.text("a").await;
    member.until_received(1).await;
    let pause = json!({"direction": "in", "policy": policy});
    let paused = scene.must("client.pause", pause).await;
    assert_eq!(paused["position"], 1, "{paused}");
    for word in ["b", "c"] {
        scene.pipe.text(word).await;
    }
    eventually("two frames reached the pause", async || {
        (counter(&scene.must("pair.get", json!({})).await, "frames_in") == 3).then_some(())
    })
    .await;
    // Control goes on, and so does the other direction.
    scene.must("client.ping", json!({})).await;
    scene.must("client.push", json!({"text": "heard"})).await;
    scene.pipe.until_received(expected.len() + 1).await;
    assert_eq!(member.received(), 1, "nothing left the paused pipe");
    let resumed = scene.must("client.resume", json!({"direction": "in"})).await;
    let (kept, lost) = if policy == "buffer" { (2, 0) } else { (0, 2) };
    assert_eq!((&resumed["buffered"], &resumed["dropped"]), (&json!(kept), &json!(lost)), "{resumed}");
    scene.pipe.text("d").await;
    let all = ["a", "b", "c", "d"];
    let expected = if policy == "buffer" { &all[..] } else { &["a", "d"] };
    member.until_received(expected.len()).await;
    assert_eq!(member.texts(), expected);
}

#[rstest]
#[case::alone(Kind::Memory)]
#[case::across(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn set_changes_a_live_pipe_and_ping_measures_it(#[case] kind: Kind, #[values(JSON, PACK, Way::Http)] way: Way) {
    let mut scene = Scene::start(kind, way, "text").await;
    let wish = json!({
        "queue_bytes": 65_536, "slow": "drop_oldest", "ping": 5, "meta": {"a": [1, null, {"b": "\u{e9}"}]},
        "key": "s"
    });
    scene.must("client.set", wish).await;
    let changed = scene.sibling.event("client.changed").await;
    assert_eq!(changed["cause"]["key"], "s", "{changed}");
    let state = scene.must("pair.get", json!({})).await;
    for told in [&changed["data"], &state] {
        assert_eq!(deep(told, "queue_bytes"), Some(&json!(65_536)), "{told}");
        assert_eq!(deep(told, "slow"), Some(&json!("drop_oldest")), "{told}");
        assert_eq!(deep(told, "meta"), Some(&json!({"a": [1, null, {"b": "\u{e9}"}]})), "{told}");
    }
    // What is not named stays as it was.
    scene.must("client.set", json!({"slow": "close"})).await;
    let state = scene.must("pair.get", json!({})).await;
    assert_eq!(deep(&state, "queue_bytes"), Some(&json!(65_536)), "{state}");
    assert_eq!(deep(&state, "slow"), Some(&json!("close")), "{state}");
    let big = json!({"meta": {"x": "y".repeat(4_200)}});
    let fault = scene.call("client.set", big).await.expect_err("4 KiB are the limit");
    assert!(matches!(fault.code, -32602 | -32013), "{fault:?}");

    let before = scene.pipe.pings();
    let pinged = scene.must("client.ping", json!({})).await;
    assert!(pinged["rtt_ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{pinged}");
    assert!(scene.pipe.pings() > before, "a ping reached the client");
    assert_eq!(scene.pipe.received(), 0, "and no frame did");
}

#[rstest]
#[case::alone(Kind::Memory)]
#[case::across(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn close_ends_the_socket_and_the_pair_lingers(#[case] kind: Kind, #[values(JSON, PACK, Way::Http)] way: Way) {
    let mut scene = Scene::start(kind, way, "text").await;
    let mut member = scene.member(1, "hall").await;
    member.text("in").await;
    scene.pipe.until_received(1).await;
    scene.pipe.text("out").await;
    member.until_received(1).await;
    scene.must("client.close", json!({"code": 4999, "reason": "g\u{fc}le", "key": "c"})).await;
    let end = scene.pipe.closed().await;
    assert_eq!((end.code, end.reason.as_str()), (Some(4999), "g\u{fc}le"));
    let closed = scene.sibling.event("client.closed").await;
    let seconds = closed["data"]["seconds"].as_f64().expect("how long it was open");
    assert!((0.0..60.0).contains(&seconds), "{closed}");
    let mut data = closed["data"].clone();
    data.as_object_mut().expect("an object").remove("seconds");
    let expected = json!({
        "epoch": 1, "code": 4999, "reason": "g\u{fc}le", "clean": true, "by": "sibling",
        "frames_in": 1, "frames_out": 1, "bytes_in": 3, "bytes_out": 2
    });
    assert_eq!(data, expected);
    assert_eq!(closed["cause"]["key"], "c", "{closed}");

    for (method, params) in [
        ("client.send", json!({"text": "x"})),
        ("client.push", json!({"text": "x"})),
        ("client.move", json!({"room": "attic"})),
        ("client.pause", json!({"direction": "in", "policy": "drop"})),
        ("client.resume", json!({"direction": "in"})),
        ("client.close", json!({})),
        ("client.ping", json!({})),
    ] {
        let fault = scene.call(method, params).await.expect_err(method);
        assert_eq!(fault.code, -32017, "{method}: {fault:?}");
        assert_eq!(fault.data["code"], "client_detached", "{method}: {fault:?}");
    }
    assert_eq!(scene.must("pair.get", json!({})).await["client"], "detached");
    let mut again = ClientSocket::open(scene.cluster.node(1), &scene.pair).await;
    let opened = scene.sibling.event("client.opened").await;
    let data = &opened["data"];
    assert_eq!((&data["epoch"], &data["room"], &data["format"]), (&json!(2), &json!("hall"), &json!("text")));
    assert!(data["node"].is_string() && data.get("subprotocol").is_some(), "{opened}");
    // Its count begins anew.
    assert_eq!(scene.must("client.push", json!({"text": "x"})).await["position"], 1);
    assert_eq!(again.next_text().await, "x");
    scene.must("client.close", json!({})).await;
    assert_eq!(again.closed().await.code, Some(1000));
}
