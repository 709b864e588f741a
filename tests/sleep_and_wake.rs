//! A sibling sleeps, its client lives on, and the sibling wakes and learns exactly what it missed.

mod support;

use rstest::rstest;
use serde_json::{Value, json};
use support::{
    Arrival, ClientSocket, Cluster, Codec, Kind, Pair, Settings, Sibling, after, check_run, eventually, kind_of,
    until,
};
use tokio_tungstenite::tungstenite::Message;

/// Raises one more event and waits for it on both: all that came before it has then come, too.
async fn meet(awake: &mut Sibling, woken: &mut Sibling, word: &str) {
    awake.must("client.set", json!({"meta": {"meet": word}, "key": word})).await;
    for sibling in [awake, woken] {
        sibling.event_where("client.changed", |params| params["cause"]["key"] == word).await;
    }
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn it_gets_what_it_missed_once_in_order_and_identical(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut awake = Sibling::open(cluster.node(1), &pair).await;
    let pipe = ClientSocket::open(cluster.node(0), &pair).await;
    let mut sleeper = Sibling::open(cluster.node(0), &pair).await;
    sleeper.must("client.set", json!({"meta": {"n": 0}})).await;
    sleeper.event("client.changed").await;
    let cursor = sleeper.sleep().await;

    // A life without its sibling: every kind of event that this pair can have.
    for (method, params) in [
        ("client.set", json!({"meta": {"deep": {"list": [1, null, "ü \u{1F980}"]}}, "key": "k"})),
        ("client.pause", json!({"direction": "both", "policy": "buffer"})),
        ("client.push", json!({"text": "while you slept"})),
        ("client.resume", json!({"direction": "both"})),
        ("client.move", json!({"room": "cellar"})),
        ("client.close", json!({"code": 4002, "reason": "come back"})),
    ] {
        awake.must(method, params).await;
    }
    drop(pipe);
    let again = ClientSocket::open(cluster.node(2), &pair).await;
    awake.event_where("client.opened", |params| params["data"]["epoch"] == 2).await;
    again.close(1000, "bye").await;
    awake.event_where("client.closed", |params| params["data"]["epoch"] == 2).await;
    let third = ClientSocket::open(cluster.node(1), &pair).await;
    awake.event_where("client.opened", |params| params["data"]["epoch"] == 3).await;

    for codec in [Codec::Json, Codec::MessagePack] {
        let dial = pair.dial_sibling(cluster.node(2)).query("cursor", &cursor);
        let mut woken = Sibling::over(codec, dial).await;
        meet(&mut awake, &mut woken, &format!("met in {codec:?}")).await;
        let (told, missed) = (woken.events(), awake.story());
        // `ready`, and then nothing but what was missed.
        assert_eq!(told[1..], *after(&missed, &cursor), "{codec:?}");
    }
    let kinds: Vec<_> = awake.story().iter().map(|params| kind_of(params).to_owned()).collect();
    let expected = [
        "client.opened",
        "client.changed",
        "client.changed",
        "client.paused",
        "client.unpaused",
        "client.moved",
        "client.closed",
        "client.opened",
        "client.closed",
        "client.opened",
        "client.changed",
        "client.changed",
    ];
    assert_eq!(kinds, expected, "one effect, one event");
    drop(third);
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn from_the_start_it_gets_all_that_is_kept(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut awake = Sibling::open(cluster.node(0), &pair).await;
    let _pipe = ClientSocket::open(cluster.node(1), &pair).await;
    awake.event("client.opened").await;
    for n in 0..20 {
        awake.must("client.set", json!({"meta": {"n": n}})).await;
    }
    let mut woken = Sibling::wake(cluster.node(2), &pair, "start").await;
    meet(&mut awake, &mut woken, "met").await;
    assert_eq!(woken.events()[1..], awake.story()[..]);

    // One that names no cursor hears only what comes from now on.
    let mut fresh = Sibling::open(cluster.node(2), &pair).await;
    meet(&mut awake, &mut fresh, "met again").await;
    assert_eq!(fresh.story().len(), 1, "{:#?}", fresh.events());
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_history_is_a_gap_with_the_true_count(#[case] kind: Kind) {
    let settings = Settings::new().set("HISTORY_EVENTS", 64).set("HISTORY_SECONDS", 0);
    let cluster = Cluster::start(kind, &settings).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut awake = Sibling::open(cluster.node(0), &pair).await;
    let _pipe = ClientSocket::open(cluster.node(1), &pair).await;
    awake.event("client.opened").await;
    let mut sleeper = Sibling::wake(cluster.node(2), &pair, "start").await;
    sleeper.event("client.opened").await;
    let cursor = sleeper.sleep().await;

    let events = 500;
    awake.pour(events, |n| ("client.set", json!({"meta": {"n": n}}))).await;
    awake.event_where("client.changed", |params| meta_n(params) == Some(events - 1)).await;

    for from in [cursor.as_str(), "start"] {
        let mut woken = Sibling::wake(cluster.node(2), &pair, from).await;
        meet(&mut awake, &mut woken, &format!("met from {from}")).await;
        let told = woken.events();
        let story = awake.story();
        let missed = if from == "start" { &story[..] } else { after(&story, from) };
        assert_eq!(kind_of(&told[1]), "gap", "what is lost is told first: {:#?}", &told[..3]);
        let kept = &told[2..];
        assert!(kept.len() >= 64, "at least 64 events are kept, not {}", kept.len());
        assert!(kept.len() < missed.len(), "and not all of {}", missed.len());
        assert_eq!(kept, &missed[missed.len() - kept.len()..], "then all that is kept");
        assert_eq!(told[1]["data"]["lost"], json!(missed.len() - kept.len()), "{}", told[1]);

        // The gap's own cursor is a place to wake from, too, and passes nothing over.
        let at_gap = told[1]["cursor"].as_str().expect("a gap has a cursor");
        let mut again = Sibling::wake(cluster.node(1), &pair, at_gap).await;
        meet(&mut awake, &mut again, &format!("met at the gap from {from}")).await;
        let (told, story) = (again.events(), awake.story());
        check_run(&told[1..], &story, None);
        if kind_of(&told[1]) != "gap" {
            assert_eq!(told[1], kept[0], "nothing between the gap and what follows it");
        }
    }
}

fn meta_n(params: &Value) -> Option<u64> {
    support::deep(&params["data"], "meta").and_then(|meta| meta["n"].as_u64())
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn what_ready_says_is_a_place_to_wake_from(#[case] kind: Kind) {
    // A sibling that dies between `ready` and the replay must not lose what it was about to get.
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut awake = Sibling::open(cluster.node(0), &pair).await;
    let _pipe = ClientSocket::open(cluster.node(1), &pair).await;
    let first = awake.event("client.opened").await;
    for n in 0..50 {
        awake.must("client.set", json!({"meta": {"n": n}})).await;
    }
    let cursor = first["cursor"].as_str().expect("a cursor");
    let woken = Sibling::wake(cluster.node(2), &pair, cursor).await;
    let ready = woken.ready();
    assert_eq!(ready["cursor"], ready["data"]["cursor"], "{ready}");
    let from_ready = ready["cursor"].as_str().expect("a cursor").to_owned();
    woken.vanish().await;
    let mut again = Sibling::wake(cluster.node(2), &pair, &from_ready).await;
    meet(&mut awake, &mut again, "met").await;
    assert_eq!(again.events()[1..], *after(&awake.story(), cursor));
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_it_still_learns_what_became_of_its_client(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut pipe = ClientSocket::open_and_told(cluster.node(1), &pair).await;
    let mut awake = Sibling::open(cluster.node(0), &pair).await;
    let cursor = Sibling::open(cluster.node(2), &pair).await.sleep().await;
    awake.must("pair.end", json!({"reason": "enough", "key": "end"})).await;
    assert_eq!(pipe.closed().await.code, Some(3510));
    awake.event("pair.ended").await;

    let mut woken = Sibling::wake(cluster.node(2), &pair, &cursor).await;
    let ended = woken.event("pair.ended").await;
    assert_eq!(ended["cause"]["key"], "end", "{ended}");
    let kinds: Vec<_> = woken.story().iter().map(|params| kind_of(params).to_owned()).collect();
    assert_eq!(kinds, ["client.closed", "pair.ended"]);
    assert_eq!(woken.story(), awake.story());
    assert_eq!(woken.story()[0]["data"]["code"], 3510);
    drop(pipe);
}

/// A sibling that wakes, hears a little, and sleeps, over and over, on every node in turn, until
/// it has heard the event of the key "end". Returns all it heard, and how many times it woke.
async fn nap(cluster: &Cluster, pair: &Pair, seed: usize, cursor: String) -> (Vec<Value>, usize) {
    let (mut told, mut cursor, mut rounds) = (Vec::new(), cursor, 0);
    loop {
        let node = cluster.node(seed + rounds);
        let codec = if rounds % 2 == 0 { Codec::Json } else { Codec::MessagePack };
        let dial = pair.dial_sibling(node).query("cursor", &cursor);
        let mut sibling = Sibling::over(codec, dial).await;
        // Sometimes it goes before anything came, sometimes in the middle of the replay.
        let hear = [1, 2, 40, 1, 300, 7][(seed + rounds) % 6];
        let enough = |all: &[Arrival]| all.len() >= hear || all.iter().any(is_end);
        sibling.until("a little news", enough).await;
        let heard = sibling.sleep_and_tell().await;
        let end = heard.iter().any(|params| params["cause"]["key"] == "end");
        if let Some(last) = heard.last() {
            cursor = last["cursor"].as_str().expect("a cursor").to_owned();
        }
        told.extend(heard.into_iter().filter(|params| kind_of(params) != "ready"));
        rounds += 1;
        if end {
            return (told, rounds);
        }
    }
}

fn is_end(arrival: &Arrival) -> bool {
    matches!(arrival, Arrival::Event(params) if params["cause"]["key"] == "end")
}

/// Raises `events` events as fast as replies allow, through a sibling, then the last one.
async fn fire(sibling: &mut Sibling, events: u64) {
    let command = |n: u64| match n % 4 {
        0 => ("client.pause", json!({"direction": "in", "policy": "buffer"})),
        1 => ("client.resume", json!({"direction": "in"})),
        _ => ("client.set", json!({"meta": {"n": n}})),
    };
    sibling.pour(events, command).await;
    sibling.must("client.set", json!({"meta": {}, "key": "end"})).await;
    sibling.until("the end", |all| all.iter().any(is_end)).await;
}

#[rstest]
#[case::memory_whole(Kind::Memory, 100_000)]
#[case::redis_whole(Kind::Redis, 100_000)]
#[case::memory_trimmed(Kind::Memory, 128)]
#[case::redis_trimmed(Kind::Redis, 128)]
#[tokio::test(flavor = "multi_thread")]
async fn the_seam_holds_under_fire(#[case] kind: Kind, #[case] kept: u64) {
    let settings = Settings::new().set("HISTORY_EVENTS", kept).set("HISTORY_SECONDS", 0).set("HISTORY_MAX", 200_000);
    let cluster = Cluster::start(kind, &settings).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut awake = Sibling::open(cluster.node(1), &pair).await;
    let _pipe = ClientSocket::open(cluster.node(0), &pair).await;
    let cursor = awake.event("client.opened").await["cursor"].clone();
    let cursor = cursor.as_str().expect("a cursor").to_owned();

    let naps = (0..4).map(|seed| nap(&cluster, &pair, seed, cursor.clone()));
    let naps = futures_util::future::join_all(naps);
    let ((), naps) = tokio::join!(fire(&mut awake, 4_000), naps);

    let story = awake.story();
    assert_eq!(story.len(), 4_002, "opened, the fire, and the end");
    for (told, rounds) in naps {
        assert!(rounds > 10, "only {rounds} rounds: no fire to wake under");
        let lost = check_run(&told, &story[1..], Some(0));
        if kept > 4_002 {
            assert_eq!(lost, 0, "nothing was trimmed");
            assert_eq!(told, story[1..], "the whole story, once, in order");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_subscriber_loses_nothing_for_those_awake() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let redis = cluster.redis.as_ref().expect("a Redis of its own");
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let _pipe = ClientSocket::open_and_told(cluster.node(0), &pair).await;
    let mut awake = Sibling::open(cluster.node(1), &pair).await;
    let mut other = Sibling::open(cluster.node(0), &pair).await;
    // Several at once, so that there always is an event on its way when the connection is cut.
    let count = std::sync::atomic::AtomicUsize::new(0);
    let post = async |from: usize| {
        for n in 0..150 {
            // A command that meets the cut itself may fail; its event is not the point.
            let meta = json!({"meta": {"from": from, "n": n}});
            let _ = pair.command(cluster.node(0), "client.set", meta).await;
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let cut = async {
        for round in 1..=25 {
            until("more events were raised", || count.load(std::sync::atomic::Ordering::Relaxed) >= round * 20).await;
            redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
    };
    tokio::join!(post(0), post(1), post(2), post(3), cut);
    // The last event falls into a cut, and nothing follows it that could show the loss.
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let _ = pair.command(cluster.node(0), "client.set", json!({"meta": {}, "key": "end"})).await;
    for sibling in [&mut awake, &mut other] {
        sibling.until("the last event", |all| all.iter().any(is_end)).await;
    }
    let mut from_start = Sibling::wake(cluster.node(1), &pair, "start").await;
    from_start.until("the last event", |all| all.iter().any(is_end)).await;
    let whole = from_start.story().split_off(1);
    assert!(whole.len() > 400, "most commands worked: {}", whole.len());
    assert_eq!(awake.story(), whole, "far from the client: {:?}", gaps(&awake));
    assert_eq!(other.story(), whole, "beside the client: {:?}", gaps(&other));
}

fn gaps(sibling: &Sibling) -> Vec<Value> {
    sibling.events().into_iter().filter(|params| kind_of(params) == "gap").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_sibling_can_wake_with_the_last_cursor_it_heard() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut pipe = ClientSocket::open(cluster.node(0), &pair).await;
    let mut lost = Sibling::open(cluster.node(1), &pair).await;
    lost.must("client.set", json!({"meta": {"n": 1}})).await;
    lost.event("client.changed").await;
    let cursor = lost.cursor();
    lost.vanish().await;
    let mut awake = Sibling::open(cluster.node(0), &pair).await;
    eventually("the pipe still answers", async || awake.call("client.ping", json!({})).await.ok()).await;
    awake.must("client.push", json!({"text": "still here"})).await;
    assert_eq!(pipe.next().await, Message::text("still here"));
    let mut woken = Sibling::wake(cluster.node(0), &pair, &cursor).await;
    meet(&mut awake, &mut woken, "met").await;
    assert_eq!(woken.events()[1..], awake.story()[..]);
}
