//! A pair has one client socket, whoever opens at the same time, and whichever node was taken for dead.

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use rstest::rstest;
use serde_json::{Value, json};
use support::{
    ADMIN_KEY, ClientSocket, Cluster, Fault, Gateway, Kind, Pair, Settings, Sibling, eventually, kind_of, until,
};
use tokio_tungstenite::tungstenite::Error;

/// Short, so that a stopped node is soon taken for dead.
const LEASE_SECONDS: u64 = 2;
/// Within this, every socket of an ended pair is closed.
const CLOSING: Duration = Duration::from_secs(10);

/// The sockets of a story in order: `("client.opened", 1)`, `("client.closed", 1)`, …
fn sockets(story: &[Value]) -> Vec<(&str, u64)> {
    let of_sockets = story.iter().filter(|params| matches!(kind_of(params), "client.opened" | "client.closed"));
    of_sockets.map(|params| (kind_of(params), params["data"]["epoch"].as_u64().expect("an epoch"))).collect()
}

fn count(story: &[Value], kind: &str) -> usize {
    story.iter().filter(|params| kind_of(params) == kind).count()
}

/// The whole history, read until `last` has come.
async fn history(node: &Gateway, pair: &Pair, last: (&str, u64)) -> Vec<Value> {
    let mut woken = Sibling::wake(node, pair, "start").await;
    woken.event_where(last.0, |params| params["data"]["epoch"] == last.1).await;
    woken.sleep_and_tell().await
}

/// Whether the pair stands in its room's list.
async fn is_member(asks: &mut Sibling, pair: &Pair) -> bool {
    let page = asks.must("room.members", json!({})).await;
    let members = page["members"].as_array().unwrap_or_else(|| panic!("no members: {page}"));
    members.iter().any(|member| member["pair"] == json!(pair.id))
}

/// Waits until `asks` no longer finds `nodes` nodes alive.
async fn until_nodes(asks: &Gateway, nodes: usize) {
    eventually("the list of nodes is as long as it should be", async || {
        let listed = asks.ask("GET", "/v1/nodes", ADMIN_KEY, None).await;
        assert_eq!(listed.status, 200, "{}", listed.text());
        (listed.json()["nodes"].as_array().expect("a list of nodes").len() == nodes).then_some(())
    })
    .await;
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_open_at_once_one_stays(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let witness = Pair::make(cluster.node(0), "hall", "text").await;
    let mut witness = ClientSocket::open_and_told(cluster.node(0), &witness).await;
    let mut stories = Vec::new();
    for round in 0..5 {
        let pair = Pair::make(cluster.node(0), "hall", "text").await;
        let mut sibling = Sibling::open(cluster.node(1), &pair).await;
        let mut pipes = join_all((0..6).map(|n| ClientSocket::open(cluster.node(n), &pair))).await;
        until("at most one of six is open", || pipes.iter().filter(|pipe| pipe.is_open()).count() <= 1).await;
        let open: Vec<_> = (0..6).filter(|&n| pipes[n].is_open()).collect();
        assert_eq!(open.len(), 1, "round {round}: one stays");
        let stays = open[0];
        for (n, pipe) in pipes.iter_mut().enumerate().filter(|(n, _)| *n != stays) {
            let end = pipe.closed().await;
            assert_eq!(end.code, Some(3509), "round {round}, socket {n}: {end:?}");
        }

        // The one that the gateway knows is the one that is open, and it was the last to open.
        let told = format!("pushed {round}");
        sibling.must("client.push", json!({"text": told})).await;
        pipes[stays].until_received(1).await;
        let state = sibling.must("pair.get", json!({})).await;
        assert_eq!(state["client"], "live", "round {round}: {state}");
        let epoch = state["epoch"].as_u64().expect("an epoch");
        sibling.event_where("client.opened", |params| params["data"]["epoch"] == epoch).await;
        stories.push((round, epoch, sibling, pair));
        let (_, _, sibling, _) = stories.last_mut().expect("just pushed");

        // Frames come to it alone, once, and go out from it once.
        let asked = format!("asked {round}");
        witness.text(asked.as_str()).await;
        pipes[stays].until_received(2).await;
        let said = format!("said {round}");
        pipes[stays].text(said.as_str()).await;
        witness.until_received(round + 1).await;
        assert_eq!(witness.texts()[round], said);
        let receivers = pipes.iter().filter(|pipe| pipe.texts().contains(&asked)).count();
        assert_eq!(receivers, 1, "round {round}: one receiver");
        assert_eq!(pipes[stays].texts(), [told, asked], "round {round}: once each");

        sibling.must("pair.end", json!({})).await;
        let end = pipes[stays].closed().await;
        assert_eq!(end.code, Some(3510), "round {round}: {end:?}");
        assert!(pipes.iter().all(|pipe| !pipe.is_open()), "round {round}: none is open");
        sibling.event("pair.ended").await;
    }
    // What was told of it: each socket opened and closed once, in order, and no node was lost.
    let mut wrong = Vec::new();
    for (round, epoch, _, pair) in &stories {
        let mut woken = Sibling::wake(cluster.node(*round), pair, "start").await;
        woken.event("pair.ended").await;
        let story = woken.story();
        let told = sockets(&story);
        let mut epochs: Vec<_> =
            told.iter().filter(|(kind, _)| *kind == "client.opened").map(|told| told.1).collect();
        let in_order = epochs.is_sorted();
        epochs.sort_unstable();
        let expected: Vec<_> =
            epochs.iter().flat_map(|epoch| [("client.opened", *epoch), ("client.closed", *epoch)]).collect();
        let mut sorted = told.clone();
        sorted.sort_by_key(|(kind, epoch)| (*epoch, *kind == "client.closed"));
        let lost = story.iter().filter(|params| params["data"]["by"] == "node_lost").count();
        if !in_order || sorted != expected || epochs.last() != Some(epoch) || lost > 0 {
            wrong.push(format!("round {round}, epoch {epoch}, {lost} by node_lost: {told:?}"));
        }
    }
    assert!(wrong.is_empty(), "the stories of {} rounds:\n{}", wrong.len(), wrong.join("\n"));
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn nothing_opens_on_a_pair_that_ends_meanwhile(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (mut rounds, mut wrong) = (Vec::new(), Vec::new());
    'rounds: for round in 0..30 {
        let pair = Pair::make(cluster.node(0), "hall", "text").await;
        let mut sibling = Sibling::open(cluster.node(round + 1), &pair).await;
        // Each is read from the moment that it is open.
        let opens = join_all((0..3).map(|n| {
            let dial = pair.dial_client(cluster.node(n));
            async { dial.connect().await.map(|(ws, _)| ClientSocket::over(ws)) }
        }));
        // The end falls into another moment of the opens in each round.
        let end = async {
            tokio::time::sleep(Duration::from_micros(500 * (round as u64 % 10))).await;
            let end = json!({"jsonrpc": "2.0", "id": 1, "method": "pair.end", "params": {}});
            let mut unsure = 0;
            loop {
                let reply = pair.post(cluster.node(round), &end).await.json();
                match Fault::split(&reply) {
                    // It took effect, or had taken effect when it was sent before.
                    Ok(_) => return unsure,
                    Err(fault) if fault.code == -32010 && unsure > 0 => return unsure,
                    Err(fault) if fault.code == -32008 && unsure < 3 => unsure += 1,
                    Err(fault) => panic!("round {round}: {fault:?}"),
                }
            }
        };
        let (opened, unsure) = tokio::join!(opens, end);
        if unsure > 0 {
            wrong.push(format!("round {round}: pair.end timed out {unsure} times"));
        }
        for (n, opened) in opened.into_iter().enumerate() {
            match opened {
                Ok(mut pipe) => match tokio::time::timeout(CLOSING, pipe.closed()).await {
                    Ok(end) if matches!(end.code, Some(3509 | 3510)) => {}
                    Ok(end) => wrong.push(format!("round {round}, socket {n}: {end:?}")),
                    Err(_) => {
                        let story = sibling.story();
                        let kinds: Vec<_> = story.iter().map(kind_of).collect();
                        wrong.push(format!(
                            "round {round}, socket {n} stays open: {kinds:?} of {:?}",
                            sockets(&story)
                        ));
                        break 'rounds;
                    }
                },
                Err(Error::Http(refusal)) => {
                    assert_eq!(refusal.status().as_u16(), 410, "round {round}, socket {n}: {refusal:?}");
                }
                Err(fault) => panic!("round {round}, socket {n}: {fault}"),
            }
        }
        sibling.event("pair.ended").await;
        rounds.push((pair, sibling));
    }
    // By now the first ones had time to tell what they should not.
    for (round, (pair, live)) in rounds.into_iter().enumerate() {
        let mut woken = Sibling::wake(cluster.node(round), &pair, "start").await;
        woken.event("pair.ended").await;
        if woken.is_open() {
            woken.call("rpc.discover", json!({})).await.expect("needs no grant and no client");
        }
        for story in [live.story(), woken.story()] {
            let kinds: Vec<_> = story.iter().map(kind_of).collect();
            let (opened, closed) = (count(&story, "client.opened"), count(&story, "client.closed"));
            if kinds.last() != Some(&"pair.ended") || count(&story, "pair.ended") != 1 || opened != closed {
                wrong.push(format!("round {round}: {kinds:?} of {:?}", sockets(&story)));
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "nothing comes behind the end, and all that opened closed:\n{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_lease_lapsed_closes_what_was_told_closed() {
    let cluster = Cluster::redis(2, &Settings::new().set("NODE_LEASE_SECONDS", LEASE_SECONDS)).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let pair = Pair::make(b, "hall", "text").await;
    let other = Pair::make(b, "hall", "text").await;
    let mut pipe = ClientSocket::open_and_told(a, &pair).await;
    let _stays = ClientSocket::open_and_told(b, &other).await;
    let mut sibling = Sibling::open(b, &pair).await;
    let mut asks = Sibling::open(b, &other).await;
    assert!(is_member(&mut asks, &pair).await, "it is a member while it lives");

    a.signal("STOP");
    let closed = sibling.event("client.closed").await;
    assert_eq!((&closed["data"]["by"], &closed["data"]["epoch"]), (&json!("node_lost"), &json!(1)), "{closed}");
    assert!(pipe.is_open(), "a stopped process closes nothing");
    a.signal("CONT");
    let end = pipe.closed().await;
    assert_eq!(end.code, Some(1012), "nobody took its place: it is to come back: {end:?}");
    assert!(!is_member(&mut asks, &pair).await, "what was told closed is no member");

    // The next socket's opening, on the same node, is behind all that the old one could have told.
    until_nodes(b, 2).await;
    a.until_ready().await;
    let again = ClientSocket::open(a, &pair).await;
    let story = history(b, &pair, ("client.opened", 2)).await;
    assert_eq!(sockets(&story), [("client.opened", 1), ("client.closed", 1), ("client.opened", 2)], "it closed once");
    again.close(1000, "bye").await;
    sibling.event_where("client.closed", |params| params["data"]["epoch"] == 2).await;
    eventually("it is no member", async || (!is_member(&mut asks, &pair).await).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_from_a_stopped_node_is_told_once_and_in_order() {
    let cluster = Cluster::redis(2, &Settings::new().set("NODE_LEASE_SECONDS", LEASE_SECONDS)).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let at_once = Pair::make(b, "hall", "text").await;
    let later = Pair::make(b, "attic", "text").await;
    let mut olds = Vec::new();
    for pair in [&at_once, &later] {
        olds.push(ClientSocket::open_and_told(a, pair).await);
    }
    a.signal("STOP");
    let mut news = vec![ClientSocket::open(b, &at_once).await];
    until_nodes(b, 1).await;
    news.push(ClientSocket::open(b, &later).await);
    for pair in [&at_once, &later] {
        history(b, pair, ("client.opened", 2)).await;
    }
    a.signal("CONT");
    for old in &mut olds {
        let end = old.closed().await;
        assert_eq!(end.code, Some(3509), "{end:?}");
    }
    until_nodes(b, 2).await;
    a.until_ready().await;
    for (pair, new) in [&at_once, &later].into_iter().zip(&mut news) {
        assert!(new.is_open(), "the newer one stays");
        assert_eq!(pair.state(b).await["epoch"], 2);
        let mut third = ClientSocket::open(a, pair).await;
        assert_eq!(new.closed().await.code, Some(3509));
        let story = history(b, pair, ("client.opened", 3)).await;
        let expected = [
            ("client.opened", 1),
            ("client.closed", 1),
            ("client.opened", 2),
            ("client.closed", 2),
            ("client.opened", 3),
        ];
        assert_eq!(sockets(&story), expected, "in order, once each, in {}", pair.room);
        pair.command(b, "client.push", json!({"text": "third"})).await.expect("a live client");
        assert_eq!(third.next_text().await, "third");
    }
}
