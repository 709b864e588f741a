//! A cursor that is not this pair's, or not true, is refused or told as a gap; it never means "now".

mod support;

use rstest::rstest;
use serde_json::json;
use support::{Arrival, Cluster, Codec, Kind, Pair, Settings, Sibling, Sse, kind_of, upgrade};
use tokio_tungstenite::tungstenite::Error;

/// A pair with a few events behind it, and the cursors of all of them.
async fn with_history(cluster: &Cluster) -> (Pair, Sibling, Vec<String>) {
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut awake = Sibling::open(cluster.node(0), &pair).await;
    let pipe = support::ClientSocket::open(cluster.node(0), &pair).await;
    awake.event("client.opened").await;
    for n in 0..12 {
        awake.must("client.set", json!({"meta": {"n": n}})).await;
        awake.event("client.changed").await;
    }
    pipe.close(1000, "").await;
    awake.event("client.closed").await;
    let cursors = awake.story().into_iter();
    let cursors = cursors.map(|params| params["cursor"].as_str().expect("a cursor").to_owned());
    (pair, awake, cursors.collect())
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_cursor_of_the_pair_is_refused(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let node = cluster.node(1);
    let (pair, _, own) = with_history(&cluster).await;
    let (_, _, foreign) = with_history(&cluster).await;
    let bearer = format!("Bearer {}", pair.sibling_ticket);
    let long = "A".repeat(2_000);
    let last = own.last().expect("a cursor");
    let doubled = format!("{last}{last}");
    let mut bad = vec![
        "x",
        "0",
        "-1",
        "now",
        "$",
        "*",
        "START",
        "startx",
        "%00",
        "..%2F..",
        "18446744073709551615",
        "AAAA",
        "0-0",
        "%C3%BC",
        &long,
        &doubled,
    ];
    bad.extend(foreign.iter().map(String::as_str));
    for cursor in bad {
        let path = pair.path(&format!("/sibling?cursor={cursor}"));
        let refused = upgrade(node.addr, &path, &[("Authorization", &bearer)]).await;
        assert!(matches!(refused.status, 400 | 404), "{cursor}: {}", refused.status);
        refused.problem(refused.status);

        let path = pair.path(&format!("/events?cursor={cursor}"));
        let refused = node.ask("GET", &path, &pair.sibling_ticket, None).await;
        assert!(matches!(refused.status, 400 | 404), "{cursor}: {}", refused.status);
        refused.problem(refused.status);
    }
    // A browser can't see that, so it is let in and told by the close.
    let dial = pair.dial_sibling(node).query("cursor", &foreign[3]).in_a_browser();
    let closed = dial.offer("siblings.v1.json").closed().await;
    assert_eq!(closed.code, Some(3504), "{closed:?}");
    // By a header, as browsers resume an event stream.
    for last in [foreign[3].as_str(), "nonsense", "\u{fc}"] {
        let headers = [("Authorization", bearer.as_str()), ("Last-Event-ID", last)];
        let refused = Sse::open(node, &pair.path("/events"), &headers).await.head;
        assert!(matches!(refused.status, 400 | 404), "{last}: {}", refused.status);
    }

    // And the pair's own still works, all of them.
    for (at, cursor) in own.iter().enumerate() {
        let mut woken = Sibling::wake(node, &pair, cursor).await;
        let behind = own.len() - at - 1;
        woken.until("the rest", |all| all.len() == behind + 1).await;
    }
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_bent_cursor_never_means_now(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (pair, mut awake, own) = with_history(&cluster).await;
    let last = own.last().expect("a cursor").clone();
    let mut bent: Vec<String> = Vec::new();
    for (at, old) in last.char_indices() {
        // The neighbours of a digit reach the position before, and one that is yet to come.
        for new in ['0', '1', '9', 'A', 'z', 'f', '_'] {
            if new != old {
                let mut cursor = last.clone();
                cursor.replace_range(at..=at, new.encode_utf8(&mut [0; 4]));
                bent.push(cursor);
            }
        }
        bent.push(last[..at].to_owned());
    }
    bent.extend(["0", "1", "A", "-"].map(|tail| format!("{last}{tail}")));
    bent.retain(|cursor| !cursor.is_empty());

    for (round, cursor) in bent.into_iter().enumerate() {
        let dial = pair.dial_sibling(cluster.node(round)).query("cursor", &cursor);
        match dial.clone().connect().await {
            Err(Error::Http(refusal)) => {
                assert!(matches!(refusal.status().as_u16(), 400 | 404), "{cursor}: {refusal:?}");
                continue;
            }
            Err(fault) => panic!("{cursor}: {fault}"),
            Ok((ws, _)) => drop(ws),
        }
        // It was taken: then it must tell of something, and not begin at the present.
        let mut woken = Sibling::over(Codec::Json, dial).await;
        let key = format!("round {round}");
        awake.must("pair.ticket", json!({"side": "sibling"})).await;
        let opened = support::ClientSocket::open(cluster.node(0), &pair).await;
        awake.must("client.set", json!({"meta": {}, "key": key})).await;
        let seen = |all: &[Arrival]| {
            all.iter().any(|arrival| match arrival {
                Arrival::Event(params) => params["cause"]["key"] == key,
                Arrival::Reply(_) => false,
            })
        };
        woken.until("the event that was raised now", seen).await;
        opened.close(1000, "").await;
        let told = woken.events();
        let story = awake.story();
        let replayed = own.iter().filter(|own| told.iter().any(|params| params["cursor"] == **own));
        assert!(
            kind_of(&told[1]) == "gap" || replayed.count() > 0,
            "{cursor} (bent from {last}) was taken as \"now\": {told:#?}, {} events in all",
            story.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_a_lost_past_is_no_cursor_of_the_present() {
    // Redis comes back empty: the pair's record and its history are gone, and its cursors with them.
    let mut cluster = Cluster::redis(1, &Settings::new()).await;
    let (pair, _, own) = with_history(&cluster).await;
    let redis = cluster.redis.as_mut().expect("a Redis of its own");
    redis.cli(&["FLUSHALL"]);
    let dial = pair.dial_sibling(cluster.node(0)).query("cursor", own.last().expect("a cursor"));
    match dial.clone().connect().await {
        Err(Error::Http(refusal)) => assert_eq!(refusal.status().as_u16(), 404),
        Err(fault) => panic!("{fault}"),
        Ok((ws, _)) => {
            drop(ws);
            let mut woken = Sibling::over(Codec::Json, dial).await;
            woken.until("a gap", |all| all.len() > 1).await;
            assert_eq!(kind_of(&woken.events()[1]), "gap");
        }
    }
}

/// Many come to a few rooms at once, on all nodes, each with a sibling that comes with its pipe.
#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn an_event_has_the_same_cursor_for_everyone_while_others_come(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let come = |number: usize| {
        let cluster = &cluster;
        async move {
            let node = |offset: usize| cluster.node((number + offset) % 3);
            let pair = Pair::make(node(0), &format!("hall-{}", number % 3), "text").await;
            let (pipe, sibling) =
                tokio::join!(support::ClientSocket::open(node(1), &pair), Sibling::open(node(2), &pair));
            (pair, pipe, sibling)
        }
    };
    let all = futures_util::future::join_all((0..48).map(come)).await;
    for (number, (pair, _pipe, mut sibling)) in all.into_iter().enumerate() {
        let mut woken = Sibling::wake(cluster.node(number % 3), &pair, "start").await;
        let kept = woken.event("client.opened").await;
        // What was told before is here with the reply.
        sibling.must("pair.get", json!({})).await;
        let story = sibling.story();
        if let Some(told) = story.iter().find(|params| kind_of(params) == "client.opened") {
            assert_eq!(*told, kept, "{number}");
        }
    }
}
