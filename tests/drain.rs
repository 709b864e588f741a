//! SIGTERM: a node says so, hands over, and is gone in time.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{
    Arrival, ClientSocket, Cluster, Pair, RawSocket, Settings, Sibling, counter, eventually, kind_of, upgrade,
};

const GRACE: Duration = Duration::from_secs(5);

fn settings() -> Settings {
    Settings::new().set("DRAIN_SECONDS", GRACE.as_secs())
}

fn seconds_until(at: &Value) -> f64 {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    let at = OffsetDateTime::parse(at.as_str().expect("a time"), &Rfc3339).expect("RFC 3339");
    (at - OffsetDateTime::now_utc()).as_seconds_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_its_siblings_closes_its_sockets_and_exits_in_time() {
    let mut cluster = Cluster::redis(2, &settings()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let here = Pair::make(a, "hall", "text").await;
    let there = Pair::make(a, "hall", "text").await;
    let mut pipe = ClientSocket::open_and_told(a, &here).await;
    let mut far_pipe = ClientSocket::open_and_told(b, &there).await;
    // Of the pair on the node that goes: one sibling beside its client, one on the other node.
    let mut near = Sibling::open(a, &here).await;
    let mut far = Sibling::open(b, &here).await;
    // And a sibling on the node that goes, whose client is on the other.
    let mut guest = Sibling::open(a, &there).await;

    let started = Instant::now();
    a.signal("TERM");
    for sibling in [&mut near, &mut guest] {
        let draining = sibling.event("node.draining").await;
        let left = seconds_until(&draining["data"]["deadline"]);
        assert!((-1.0..=6.0).contains(&left), "the deadline is {left} s away: {draining}");
        let spread = draining["data"]["reconnect_within"].as_f64().expect("a time to spread over");
        assert!(spread > 0.0, "{draining}");
    }
    let end = pipe.closed().await;
    assert_eq!(end.code, Some(1012), "{end:?}");
    assert!(!end.reason.is_empty(), "a close has a reason");
    // The sibling hears what became of its client before it is closed itself.
    let closed = near.event("client.closed").await;
    assert_eq!(closed["data"]["code"], 1012, "{closed}");
    assert_eq!(closed["data"]["by"], "gateway", "{closed}");
    assert_eq!(far.event("client.closed").await, closed, "the same event on the other node");
    assert_eq!(near.closed().await.code, Some(1012));
    assert_eq!(guest.closed().await.code, Some(1012));
    let told = guest.story();
    assert!(told.is_empty(), "nothing happened to the client on the other node: {told:#?}");
    assert!(far.events().iter().all(|params| kind_of(params) != "node.draining"), "its node stays");

    let status = cluster.node_mut(0).exit(GRACE + Duration::from_secs(2)).await;
    assert!(status.success(), "{status}");
    assert!(started.elapsed() < GRACE + Duration::from_secs(1), "took {:?}", started.elapsed());

    // The other node goes on, and takes over.
    let b = cluster.node(1);
    let mut woken = Sibling::wake(b, &here, &near.cursor()).await;
    let mut again = ClientSocket::open(b, &here).await;
    let opened = woken.event("client.opened").await;
    assert_eq!(opened["data"]["epoch"], 2, "{opened}");
    let mut from_start = Sibling::wake(b, &here, "start").await;
    from_start.event_where("client.opened", |params| params["data"]["epoch"] == 2).await;
    let kinds: Vec<_> = from_start.story().iter().map(|params| kind_of(params).to_owned()).collect();
    assert_eq!(kinds, ["client.opened", "client.closed", "client.opened"]);
    far_pipe.text("after the drain").await;
    assert_eq!(again.next_text().await, "after the drain");
    let members = woken.must("room.members", json!({})).await;
    assert_eq!(members["members"].as_array().map(Vec::len), Some(2), "{members}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sibling_hears_of_its_client_first_even_if_that_answers_no_close() {
    let mut cluster = Cluster::redis(2, &settings()).await;
    let a = cluster.node(0);
    let pair = Pair::make(a, "hall", "text").await;
    // Its kernel takes the close frame, and nobody answers it.
    let _mute = RawSocket::upgrade(a, &pair.path("/client"), &pair.client_ticket, None).await;
    let mut near = Sibling::open(a, &pair).await;
    a.signal("TERM");
    assert_eq!(near.closed().await.code, Some(1012));
    let told = near.story();
    assert_eq!(told.last().map(kind_of), Some("client.closed"), "{:#?}", near.events());
    assert_eq!(told.last().expect("just seen")["data"]["code"], 1012, "{told:#?}");
    let status = cluster.node_mut(0).exit(GRACE + Duration::from_secs(2)).await;
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_drains_it_is_not_ready_and_takes_no_new_socket() {
    let mut cluster = Cluster::memory(&settings()).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "cam", "binary").await;
    let speaks = Pair::make(node, "cam", "binary").await;
    // A peer that never reads can't be closed politely: the drain has something to wait for.
    let _stuck = RawSocket::upgrade(node, &pair.path("/client"), &pair.client_ticket, None).await;
    let mut sender = ClientSocket::open(node, &speaks).await;
    let mut sibling = Sibling::open(node, &pair).await;
    sibling.must("client.set", json!({"slow": "drop_newest"})).await;
    for _ in 0..200 {
        sender.binary(vec![1; 65_536]).await;
    }
    eventually("the pipe is jammed", async || {
        let state = sibling.must("pair.get", json!({})).await;
        (counter(&state, "dropped_frames") > 0).then_some(())
    })
    .await;

    let started = Instant::now();
    node.signal("TERM");
    eventually("the node says that it is not ready", async || {
        (node.get("/readyz").await.status == 503).then_some(())
    })
    .await;
    assert_eq!(node.get("/livez").await.status, 200, "a draining node is alive");
    let bearer = format!("Bearer {}", speaks.client_ticket);
    for path in [speaks.path("/client"), "/v1/rooms/cam/client".to_owned()] {
        let refused = upgrade(node.addr, &path, &[("Authorization", &bearer)]).await;
        refused.problem(503);
        let after = refused.header("retry-after").expect("Retry-After");
        assert!(after.parse::<u64>().is_ok(), "{after}");
    }
    let status = cluster.node_mut(0).exit(GRACE + Duration::from_secs(2)).await;
    assert!(status.success(), "{status}");
    assert!(started.elapsed() < GRACE + Duration::from_secs(1), "took {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_every_command_is_answered_or_its_socket_closed() {
    let mut cluster = Cluster::redis(2, &settings()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let mut parts = Vec::new();
    for _ in 0..20 {
        let pair = Pair::make(b, "busy", "text").await;
        let pipe = ClientSocket::open(a, &pair).await;
        let sibling = Sibling::open(a, &pair).await;
        parts.push((pair, pipe, sibling));
    }
    let work = parts.into_iter().map(async |(pair, mut pipe, mut sibling)| {
        let mut n = 0_u64;
        while sibling.is_open() && n < 100_000 {
            pipe.try_send(tokio_tungstenite::tungstenite::Message::text(n.to_string())).await;
            let call = json!({
                "jsonrpc": "2.0", "id": n, "method": "client.set", "params": {"meta": {"n": n}}
            });
            if !sibling.try_send_value(&call).await {
                break;
            }
            let answered = |all: &[Arrival]| replies(all) + 8 > n;
            if !sibling.until_or_closed(answered).await {
                break;
            }
            n += 1;
        }
        let end = (pipe.closed().await, sibling.closed().await);
        (pair, end, sibling)
    });
    let stop = async {
        a.signal("TERM");
        Instant::now()
    };
    let (done, started) = tokio::join!(futures_util::future::join_all(work), stop);
    let status = cluster.node_mut(0).exit(GRACE + Duration::from_secs(2)).await;
    assert!(status.success(), "{status}");
    assert!(started.elapsed() < GRACE + Duration::from_secs(2), "took {:?}", started.elapsed());

    for (pair, (pipe, sibling), heard) in done {
        assert_eq!(pipe.code, Some(1012), "{pipe:?}");
        assert_eq!(sibling.code, Some(1012), "{sibling:?}");
        // Every effect that was answered with success is in the history, on the other node.
        let story = heard.story();
        let mut woken = Sibling::wake(cluster.node(1), &pair, "start").await;
        let closed = woken.event("client.closed").await;
        assert_eq!(closed["data"]["code"], 1012, "{closed}");
        let kept = woken.story();
        assert!(kept.len() >= story.len(), "{} kept of {}", kept.len(), story.len());
        let changed = kept.iter().filter(|params| kind_of(params) == "client.changed");
        let (changed, ok) = (changed.count() as u64, ok_replies(&heard));
        assert!(changed >= ok, "{ok} commands were answered, {changed} took effect");
        let last = story.last().map(|params| kind_of(params).to_owned());
        assert_eq!(last.as_deref(), Some("client.closed"), "heard before it was closed");
    }
}

fn replies(all: &[Arrival]) -> u64 {
    all.iter().filter(|arrival| matches!(arrival, Arrival::Reply(_))).count() as u64
}

fn ok_replies(sibling: &Sibling) -> u64 {
    let arrivals = sibling.arrivals().into_iter();
    let ok = |arrival: &Arrival| matches!(arrival, Arrival::Reply(r) if r.get("result").is_some());
    arrivals.filter(ok).count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_does_not_wait_for_its_grace() {
    let mut cluster = Cluster::memory(&settings()).await;
    let started = Instant::now();
    cluster.node(0).signal("TERM");
    let status = cluster.node_mut(0).exit(GRACE).await;
    assert!(status.success(), "{status}");
    assert!(started.elapsed() < GRACE, "nothing was open: {:?}", started.elapsed());
}
