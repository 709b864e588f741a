//! One mark at a time: what it waits for, what it overtakes, and what its asker hears when its frame never comes.

use std::time::{Duration, Instant};

use rstest::rstest;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    CONFLICT, ROOM, marks_of, member, numbered, numbers,
    support::{Agent, ClientSocket, Cluster, Fault, Kind, Settings, Sibling, eventually, kind_of, specify},
};

/// A sender whose sibling sets marks, a receiver whose siblings watch them; nobody else.
struct Scene {
    cluster: Cluster,
    from: Agent,
    to: Agent,
}

impl Scene {
    async fn start(kind: Kind, spec: Value) -> Self {
        let cluster = Cluster::start(kind, &Settings::new()).await;
        specify(cluster.node(0), ROOM, spec).await;
        let (from, to) = (member(&cluster, 0, "binary").await, member(&cluster, 2, "binary").await);
        Self { cluster, from, to }
    }

    /// Sends the frames with these numbers, and waits until they are counted.
    async fn send(&mut self, numbers: std::ops::RangeInclusive<u64>) {
        let last = *numbers.end();
        self.from.pipe.burst(numbered(numbers)).await;
        let sibling = &mut self.from.sibling;
        eventually("the node has received all", async || {
            let state = sibling.must("pair.get", json!({})).await;
            (state["counters"]["frames_in"] == last).then_some(())
        })
        .await;
    }

    async fn mark(&mut self, data: &str, after: Option<u64>) -> Result<Value, Fault> {
        let mut params = json!({"data": data, "key": data});
        if let Some(after) = after {
            params["after"] = json!(after);
        }
        self.from.sibling.call("client.mark", params).await
    }

    /// Where the receiver was told of a mark.
    async fn told(&mut self, data: &str) -> u64 {
        let told = self.to.sibling.event_where("mark", |params| params["data"]["data"] == data).await;
        let expected = json!({"from": self.from.pair.id, "data": data, "at": told["data"]["at"], "epoch": 1});
        assert_eq!(told["data"], expected);
        told["data"]["at"].as_u64().expect("a place")
    }
}

fn binary() -> Value {
    json!({"format": "binary"})
}

#[rstest]
#[case::alone(Kind::Memory)]
#[case::across(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_waits_for_its_frame_and_not_for_one_that_has_gone(#[case] kind: Kind) {
    let mut scene = Scene::start(kind, binary()).await;
    assert_eq!(scene.mark("none yet", None).await.expect("a place"), json!({"position": 0}));
    assert_eq!(scene.told("none yet").await, 0, "there is no frame, and it is told");
    scene.send(1..=5).await;
    let late = scene.mark("late", Some(4)).await.expect_err("it has gone");
    assert_eq!((late.code, late.data["code"].as_str()), (CONFLICT, Some("conflict")));
    assert!(late.message.contains("5 frames"), "{late:?}");
    assert_eq!(scene.mark("now", Some(5)).await.expect("a place"), json!({"position": 5}));
    assert_eq!(scene.mark("last", None).await.expect("a place"), json!({"position": 5}));

    // Ahead of its frame, which comes in the middle of a burst; the key makes it one mark, whoever sends it again.
    let ahead = json!({"data": "ahead", "after": 8, "key": "ahead"});
    let first = scene.from.sibling.ask("client.mark", ahead.clone()).await;
    let mut again = Sibling::open(scene.cluster.node(2), &scene.from.pair).await;
    let second = again.ask("client.mark", ahead.clone()).await;
    again.must("pair.get", json!({})).await;
    scene.send(6..=10).await;
    for reply in [scene.from.sibling.reply(first).await, again.reply(second).await] {
        assert_eq!(reply.expect("a place"), json!({"position": 8}));
    }
    assert_eq!(again.must("client.mark", ahead).await, json!({"position": 8}));
    assert_eq!([scene.told("now").await, scene.told("last").await, scene.told("ahead").await], [5, 5, 8]);

    // Nobody is told who does not want to be.
    scene.to.sibling.must("room.unwatch", json!({"marks": true})).await;
    scene.mark("unheard", None).await.expect("a place");
    scene.to.sibling.must("room.watch", json!({"marks": true})).await;
    scene.mark("heard", None).await.expect("a place");
    assert_eq!(scene.told("heard").await, 10);
    let all: Vec<_> = marks_of(&scene.to.sibling).iter().map(|told| told["data"]["data"].clone()).collect();
    assert_eq!(all, ["none yet", "now", "last", "ahead", "heard"]);
    scene.from.sibling.event_where("mark", |params| params["data"]["data"] == "heard").await;
    let own: Vec<_> = marks_of(&scene.from.sibling).iter().map(|told| told["cause"]["key"].clone()).collect();
    assert_eq!(own, ["none yet", "now", "last", "ahead", "unheard", "heard"], "the sender's own siblings watch too");
}

#[rstest]
#[case::buffer("buffer")]
#[case::hold("hold")]
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_goes_among_frames_that_wait(#[case] policy: &str) {
    let mut scene = Scene::start(Kind::Redis, binary()).await;
    scene.send(1..=3).await;
    let pause = json!({"direction": "in", "policy": "buffer"});
    assert_eq!(scene.from.sibling.must("client.pause", pause).await["position"], 3);
    scene.send(4..=9).await;
    let pause = json!({"direction": "in", "policy": policy});
    assert_eq!(scene.from.sibling.must("client.pause", pause).await["position"], 3, "it stands where it stood");
    for (data, after) in
        [("six", Some(6)), ("end", None), ("six too", Some(6)), ("three", Some(3)), ("four", Some(4))]
    {
        let position = scene.mark(data, after).await.expect("a place");
        assert_eq!(position, json!({"position": after.unwrap_or(9)}));
    }
    let late = scene.mark("late", Some(2)).await.expect_err("it has gone");
    assert!(late.code == CONFLICT && late.message.contains("3 frames"), "{late:?}");
    assert!(marks_of(&scene.to.sibling).is_empty() && scene.to.pipe.received() == 3);
    let resumed = scene.from.sibling.must("client.resume", json!({"direction": "in"})).await;
    assert_eq!(resumed, json!({"position": 3, "buffered": 6, "dropped": 0}));
    let mut told = Vec::new();
    for data in ["three", "four", "six", "six too", "end"] {
        told.push(scene.told(data).await);
    }
    assert_eq!(told, [3, 4, 6, 6, 9]);

    // Where frames are dropped it stands behind what was published last.
    scene.from.sibling.must("client.pause", json!({"direction": "in", "policy": "drop"})).await;
    scene.send(10..=12).await;
    assert_eq!(scene.mark("dropped", None).await.expect("a place"), json!({"position": 12}));
    let ahead = scene.from.sibling.ask("client.mark", json!({"data": "ahead", "after": 14})).await;
    let resumed = scene.from.sibling.must("client.resume", json!({"direction": "in"})).await;
    assert_eq!(resumed, json!({"position": 12, "buffered": 0, "dropped": 3}));
    scene.send(13..=15).await;
    assert_eq!(scene.from.sibling.reply(ahead).await.expect("a place"), json!({"position": 14}));
    assert_eq!([scene.told("dropped").await, scene.told("ahead").await], [9, 11]);
    assert_eq!(numbers(&scene.to.pipe)[8..=10], [9, 13, 14]);

    // What waits when the socket ends is told to be lost, though the command has its reply.
    scene.from.sibling.must("client.pause", json!({"direction": "in", "policy": policy})).await;
    scene.mark("never", None).await.expect("a place");
    scene.from.sibling.must("client.close", json!({})).await;
    let missed = scene.from.sibling.event("mark.missed").await;
    assert_eq!((&missed["data"]["data"], &missed["data"]["after"]), (&json!("never"), &json!(15)), "{missed}");
    assert_eq!(missed["cause"]["key"], "never", "{missed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_frames_count_and_so_does_who_may_publish() {
    let mut scene = Scene::start(Kind::Redis, json!({"format": "binary", "violations": "drop"})).await;
    let ahead = scene.from.sibling.ask("client.mark", json!({"data": "a", "after": 3})).await;
    let refused = scene.from.sibling.ask("client.mark", json!({"data": "b", "after": 2})).await;
    let first = scene.from.sibling.ask("client.mark", json!({"data": "c", "after": 1})).await;
    // All have come when this is answered.
    scene.from.sibling.must("pair.get", json!({})).await;
    // A client that counts what it sends counts the second one, too.
    let mut frames = numbered([1, 3, 4]);
    frames.insert(1, Message::text("of the wrong kind"));
    scene.from.pipe.burst(frames).await;
    assert_eq!(scene.from.sibling.reply(ahead).await.expect("a place"), json!({"position": 3}));
    assert_eq!(scene.from.sibling.reply(refused).await.expect("a place"), json!({"position": 2}));
    assert_eq!(scene.from.sibling.reply(first).await.expect("a place"), json!({"position": 1}));
    assert_eq!([scene.told("c").await, scene.told("b").await, scene.told("a").await], [1, 1, 2]);
    scene.to.pipe.until_received(3).await;
    assert_eq!(numbers(&scene.to.pipe), [1, 3, 4]);
    let paused = scene.from.sibling.must("client.pause", json!({"direction": "in"})).await;
    assert_eq!(paused["position"], 4, "one word for one thing");

    specify(scene.cluster.node(1), ROOM, json!({"format": "binary", "publish": "granted"})).await;
    scene.from.sibling.event("room.changed").await;
    let fault = scene.mark("no", None).await.expect_err("not granted");
    assert_eq!((fault.code, fault.data["code"].as_str()), (-32003, Some("forbidden")), "{fault:?}");
    scene.from.sibling.must("client.close", json!({})).await;
    let fault = scene.mark("gone", None).await.expect_err("no client socket");
    assert_eq!((fault.code, fault.data["code"].as_str()), (-32017, Some("client_detached")), "{fault:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_whose_frame_never_comes_is_told_of() {
    let mut scene = Scene::start(Kind::Redis, binary()).await;
    scene.send(1..=5).await;
    // As many as may wait; the next is refused, and everything else is still heard.
    let mut asked = Vec::new();
    for n in 0..64 {
        asked.push(scene.from.sibling.ask("client.mark", json!({"data": n, "after": 100 + n})).await);
    }
    let full = scene.mark("one more", Some(7)).await.expect_err("too many wait");
    assert_eq!((full.code, full.data["code"].as_str()), (-32029, Some("rate_limited")), "{full:?}");
    scene.from.sibling.must("pair.get", json!({})).await;
    scene.send(6..=6).await;
    // A new socket takes over: its frames are counted anew.
    let _again = ClientSocket::open(scene.cluster.node(1), &scene.from.pair).await;
    for (n, id) in asked.into_iter().enumerate() {
        let fault = scene.from.sibling.reply(id).await.expect_err("its frame never came");
        assert!(fault.code == CONFLICT && fault.message.contains("6 frames"), "{fault:?}");
        let missed = scene.from.sibling.event("mark.missed").await;
        let data = &missed["data"];
        assert_eq!(
            (&data["data"], &data["after"], &data["frames"]),
            (&json!(n), &json!(100 + n), &json!(6)),
            "{missed}"
        );
        assert!(data["reason"].is_string() && missed["cause"]["id"] == id, "{missed}");
    }
    assert!(marks_of(&scene.to.sibling).is_empty());
}

/// It takes half a minute: that is what it is about.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_waits_for_half_a_minute_and_its_asker_a_little_longer() {
    let mut scene = Scene::start(Kind::Redis, binary()).await;
    let started = Instant::now();
    let id = scene.from.sibling.ask("client.mark", json!({"data": "late", "after": 2, "key": "late"})).await;
    scene.send(1..=1).await;
    let soon = scene.from.sibling.ask("client.mark", json!({"data": "in time", "after": 2})).await;
    while started.elapsed().as_secs() < 29 {
        assert_eq!(scene.from.sibling.must("pair.get", json!({})).await["client"], "live");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let fault = scene.from.sibling.reply(id).await.expect_err("its frame never came");
    assert!(fault.code == CONFLICT && fault.message.contains("1 frames"), "{fault:?}");
    assert!((29..34).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    let missed = scene.from.sibling.event("mark.missed").await;
    assert_eq!((&missed["data"]["data"], &missed["data"]["frames"]), (&json!("late"), &json!(1)), "{missed}");
    let fault = scene.from.sibling.reply(soon).await.expect_err("its frame never came, too");
    assert_eq!(fault.code, CONFLICT, "mail that was sent again and again waited once");
    scene.from.sibling.event("mark.missed").await;
    scene.send(2..=2).await;
    let missed = scene.from.sibling.story().iter().filter(|told| kind_of(told) == "mark.missed").count();
    assert_eq!(missed, 2);
    assert!(marks_of(&scene.to.sibling).is_empty());
}
