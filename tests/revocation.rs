//! The authority of a ticket ends: at once and everywhere when it is revoked, and in mid-stream when it expires.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rstest::rstest;
use serde_json::{Value, json};
use sibling_sockets::{
    broker::memory::Memory,
    cli::start,
    config::{Config, ServeArgs},
    node::Node,
    protocol::{Fault, Grants, NodeId, PairId, Revocation, Side, Ticket},
};
use support::{
    ADMIN_KEY, ClientSocket, Closed, Cluster, Gateway, Kind, Pair, Reply, Settings, Sibling, Sse, eventually,
    kind_of, upgrade,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// How soon a revocation is seen on all nodes.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What a ticket says of itself.
fn claims(ticket: &str) -> Value {
    let part = ticket.split('.').nth(1).expect("three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("JSON")
}

async fn revoke(node: &Gateway, bearer: &str, what: Value) -> Reply {
    node.ask("POST", "/v1/revocations", bearer, Some(&what)).await
}

async fn must_revoke(node: &Gateway, bearer: &str, what: Value) {
    let reply = revoke(node, bearer, what).await;
    assert_eq!((reply.status, reply.text().as_str()), (204, ""));
}

/// A ticket from the admin's hands.
async fn ticket(node: &Gateway, pair: &Pair, params: Value) -> String {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "pair.ticket", "params": params});
    let reply = node.ask("POST", &pair.path("/commands"), ADMIN_KEY, Some(&call)).await;
    reply.json()["result"]["ticket"].as_str().unwrap_or_else(|| panic!("no ticket: {}", reply.text())).to_owned()
}

/// The same pair, in the hands of somebody with another ticket.
fn with_sibling(pair: &Pair, ticket: String) -> Pair {
    Pair { sibling_ticket: ticket, ..pair.clone() }
}

async fn stream(node: &Gateway, pair: &Pair) -> Sse {
    let bearer = format!("Bearer {}", pair.sibling_ticket);
    let sse = Sse::open(node, &pair.path("/events"), &[("Authorization", &bearer)]).await;
    assert_eq!(sse.head.status, 200, "{:?}", sse.head);
    sse
}

fn refused(why: &str) -> Closed {
    Closed { code: Some(3501), reason: why.to_owned() }
}

fn assert_refused(reply: &Reply, why: &str) {
    assert_eq!(reply.problem(401), "unauthorized");
    assert!(reply.text().contains(why), "{}", reply.text());
}

/// Whichever way somebody comes with a sibling's ticket, every node says why it is barred.
async fn assert_sibling_barred(nodes: &[&Gateway], pair: &Pair) {
    let bearer = format!("Bearer {}", pair.sibling_ticket);
    for node in nodes {
        let headers = [("Authorization", bearer.as_str())];
        assert_refused(&upgrade(node.addr, &pair.path("/sibling"), &headers).await, "was revoked");
        assert_refused(&Sse::open(node, &pair.path("/events"), &headers).await.refusal().await, "was revoked");
        for path in [pair.path(""), "/v1/validate".into()] {
            assert_refused(&node.ask("GET", &path, &pair.sibling_ticket, None).await, "was revoked");
        }
        assert_refused(&node.ask("DELETE", &pair.path(""), &pair.sibling_ticket, None).await, "was revoked");
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "pair.get"});
        assert_refused(&pair.post(node, &call).await, "was revoked");
        let again = json!({"pair": pair.id});
        assert_refused(&revoke(node, &pair.sibling_ticket, again).await, "was revoked");
        assert_eq!(pair.dial_sibling(node).in_a_browser().closed().await, refused("the ticket was revoked"));
    }
}

async fn assert_client_barred(nodes: &[&Gateway], pair: &Pair) {
    let bearer = format!("Bearer {}", pair.client_ticket);
    for node in nodes {
        let reply = upgrade(node.addr, &pair.path("/client"), &[("Authorization", &bearer)]).await;
        assert_refused(&reply, "was revoked");
        assert_eq!(pair.dial_client(node).in_a_browser().closed().await, refused("the ticket was revoked"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_ticket_ends_at_once_on_every_node_and_nothing_else_does() {
    let mut cluster = Cluster::redis(3, &Settings::new()).await;
    let [zero, one, two] = [0, 1, 2].map(|at| cluster.node(at));
    let pair = Pair::make(zero, "hall", "text").await;
    let other = Pair::make(one, "hall", "text").await;
    let mine = with_sibling(&pair, ticket(zero, &pair, json!({"side": "sibling", "grants": ["client.*"]})).await);
    let mut pipe = ClientSocket::open(zero, &pair).await;
    let mut other_pipe = ClientSocket::open(two, &other).await;
    let mut far = [Sibling::open(one, &mine).await, Sibling::open(two, &mine).await];
    let mut events = stream(zero, &mine).await;
    let mut spared = Sibling::wake(two, &pair, "start").await;
    let mut others = [Sibling::open(zero, &other).await, Sibling::open(one, &other).await];

    let since = Instant::now();
    must_revoke(two, ADMIN_KEY, json!({"ticket": mine.sibling_ticket})).await;
    for sibling in &mut far {
        assert_eq!(sibling.closed().await, refused("ticket revoked"));
    }
    events.rest().await;
    println!("{:?} until three nodes had closed what a ticket opened", since.elapsed());
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    assert_sibling_barred(&[zero, one, two], &mine).await;

    // Another ticket of the pair, and all of another pair, go on.
    spared.must("client.push", json!({"text": "still here"})).await;
    assert_eq!(pipe.next_text().await, "still here");
    other_pipe.text("hello").await;
    assert_eq!(pipe.next_text().await, "hello");
    for sibling in &mut others {
        sibling.must("pair.get", json!({})).await;
    }

    // The client's, by its name; from the node that is farthest from it.
    let since = Instant::now();
    must_revoke(one, ADMIN_KEY, json!({"jti": claims(&pair.client_ticket)["jti"]})).await;
    assert_eq!(pipe.closed().await, refused("ticket revoked"));
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    let told = spared.event("client.closed").await;
    assert_eq!(
        [&told["data"]["code"], &told["data"]["by"], &told["data"]["reason"]],
        [&json!(3501), &json!("gateway"), &json!("ticket revoked")]
    );
    assert_client_barred(&[zero, one, two], &pair).await;
    assert!(spared.is_open() && other_pipe.is_open() && others.iter().all(Sibling::is_open));

    cluster.join().await;
    assert_client_barred(&[cluster.node(3)], &pair).await;
    assert_sibling_barred(&[cluster.node(3)], &mine).await;
    assert_eq!(other_pipe.received(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_is_revoked_with_all_that_was_signed_for_it() {
    let mut cluster = Cluster::redis(3, &Settings::new()).await;
    let [zero, one, two] = [0, 1, 2].map(|at| cluster.node(at));
    let pair = Pair::make(zero, "hall", "text").await;
    let other = Pair::make(zero, "hall", "text").await;
    let more = with_sibling(&pair, ticket(two, &pair, json!({"side": "sibling"})).await);
    let mut pipe = ClientSocket::open(one, &pair).await;
    let mut siblings = [Sibling::open(zero, &pair).await, Sibling::open(two, &more).await];
    let mut events = stream(one, &more).await;
    let (mut spared, mut untouched) = (Sibling::open(two, &other).await, ClientSocket::open(two, &other).await);
    // The admin needs no ticket, so nothing of it is revoked.
    let admin = Pair { sibling_ticket: ADMIN_KEY.into(), ..pair.clone() };
    let mut watch = Sibling::open(one, &admin).await;

    let since = Instant::now();
    must_revoke(zero, &pair.sibling_ticket, json!({"pair": pair.id})).await;
    assert_eq!(pipe.closed().await, refused("ticket revoked"));
    for sibling in &mut siblings {
        assert_eq!(sibling.closed().await, refused("ticket revoked"));
    }
    events.rest().await;
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    watch.event("client.closed").await;
    assert_client_barred(&[zero, one, two], &pair).await;
    assert_sibling_barred(&[zero, one, two], &pair).await;
    assert_sibling_barred(&[zero, one, two], &more).await;
    untouched.text("on").await;
    spared.must("pair.get", json!({})).await;

    // What is signed from now on is good at once, everywhere; and can be revoked just so.
    for round in 0..2 {
        let fresh = Pair {
            client_ticket: ticket(zero, &pair, json!({"side": "client"})).await,
            sibling_ticket: ticket(zero, &pair, json!({"side": "sibling"})).await,
            ..pair.clone()
        };
        let mut pipe = ClientSocket::open(two, &fresh).await;
        let mut sibling = Sibling::open(one, &fresh).await;
        sibling.must("client.push", json!({"text": "hi"})).await;
        assert_eq!(pipe.next_text().await, "hi", "{round}");
        must_revoke(zero, ADMIN_KEY, json!({"pair": pair.id})).await;
        assert_eq!(
            (pipe.closed().await, sibling.closed().await),
            (refused("ticket revoked"), refused("ticket revoked"))
        );
    }
    cluster.join().await;
    assert_client_barred(&[cluster.node(3)], &pair).await;
    assert_sibling_barred(&[cluster.node(3)], &more).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_its_data_is_told_what_is_revoked() {
    let mut cluster = Cluster::redis(2, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mine = with_sibling(&pair, ticket(cluster.node(0), &pair, json!({"side": "sibling"})).await);
    let pipe = ClientSocket::open_and_told(cluster.node(1), &pair).await;
    must_revoke(cluster.node(0), ADMIN_KEY, json!({"ticket": mine.sibling_ticket})).await;
    assert_sibling_barred(&[cluster.node(0), cluster.node(1)], &mine).await;
    let entries = |cluster: &Cluster| {
        let count = cluster.redis.as_ref().expect("over Redis").cli(&["LLEN", "sib:{cluster}:log"]);
        count.parse::<u64>().unwrap_or_default()
    };
    assert_eq!(entries(&cluster), 1);

    cluster.redis.as_mut().expect("over Redis").kill();
    // Who can't ask knows it nevertheless.
    assert_sibling_barred(&[cluster.node(0), cluster.node(1)], &mine).await;
    cluster.redis.as_mut().expect("over Redis").restart().await;
    eventually("it is told again", async || (entries(&cluster) > 0).then_some(())).await;
    assert_sibling_barred(&[cluster.node(0), cluster.node(1)], &mine).await;
    cluster.join().await;
    assert_sibling_barred(&[cluster.node(2)], &mine).await;

    // The same without a sign that anything was lost.
    cluster.redis.as_ref().expect("over Redis").cli(&["DEL", "sib:{cluster}:log"]);
    eventually("it is told once more", async || (entries(&cluster) > 0).then_some(())).await;
    cluster.join().await;
    assert_sibling_barred(&[cluster.node(3)], &mine).await;
    assert!(pipe.is_open());
    // Only that ticket: whoever has another comes in, also on the new node.
    let mut spared = Sibling::open(cluster.node(3), &pair).await;
    spared.must("client.push", json!({"text": "hi"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_without_a_broker_says_so_and_can_be_sent_again() {
    let mut cluster = Cluster::redis(2, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut pipe = ClientSocket::open_and_told(cluster.node(1), &pair).await;
    cluster.redis.as_mut().expect("over Redis").kill();
    let what = json!({"jti": claims(&pair.client_ticket)["jti"]});
    let reply = revoke(cluster.node(0), ADMIN_KEY, what.clone()).await;
    assert_eq!(reply.problem(503), "broker_unavailable");
    assert!(reply.text().contains("send it again") && reply.header("retry-after").is_some(), "{}", reply.text());
    assert!(pipe.is_open());
    cluster.redis.as_mut().expect("over Redis").restart().await;
    eventually("the retry works", async || {
        (revoke(cluster.node(0), ADMIN_KEY, what.clone()).await.status == 204).then_some(())
    })
    .await;
    assert_eq!(pipe.closed().await, refused("ticket revoked"));
    assert_client_barred(&[cluster.node(0), cluster.node(1)], &pair).await;
}

/// A node whose subscriptions Redis has cut reads what it missed.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_reaches_a_node_that_did_not_hear_it() {
    let cluster = Cluster::redis(3, &Settings::new()).await;
    for round in 0..3 {
        let pair = Pair::make(cluster.node(0), "hall", "text").await;
        let mut pipe = ClientSocket::open(cluster.node(1), &pair).await;
        let mut sibling = Sibling::open(cluster.node(2), &pair).await;
        cluster.redis.as_ref().expect("over Redis").cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        eventually("the revocation is taken", async || {
            (revoke(cluster.node(0), ADMIN_KEY, json!({"pair": pair.id})).await.status == 204).then_some(())
        })
        .await;
        assert_eq!(pipe.closed().await, refused("ticket revoked"), "{round}");
        assert_eq!(sibling.closed().await, refused("ticket revoked"), "{round}");
    }
}

/// How long ago something was that is told as text.
fn since(text: &Value) -> Duration {
    let then = OffsetDateTime::parse(text.as_str().expect("a time"), &Rfc3339).expect("RFC 3339");
    SystemTime::now().duration_since(then.into()).unwrap_or_default()
}

fn warned(told: &Value, side: &str, expires_at: &Value) {
    let data = &told["data"];
    assert_eq!([&data["side"], &data["expires_at"]], [&json!(side), expires_at], "{told}");
    let seconds = data["seconds"].as_f64().expect("a number");
    assert!(seconds > 0.0 && seconds <= 0.6, "a tenth of its life: {seconds}");
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn authority_expires_in_mid_stream(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new().set("TICKET_SECONDS", 6)).await;
    let [zero, one, two] = [0, 1, 2].map(|at| cluster.node(at));
    let mut walk_in = ClientSocket::over(support::Dial::to(one, "/v1/rooms/hall/client?format=text").open().await);
    let pair = Pair::make(zero, "hall", "text").await;
    let long = json!({"side": "sibling", "ttl": 60});
    let observer = with_sibling(&pair, ticket(zero, &pair, long).await);
    let mut observer = Sibling::open(two, &observer).await;
    let mut pipe = ClientSocket::open(one, &pair).await;
    let mut sibling = Sibling::open(two, &pair).await;
    let mut events = stream(zero, &pair).await;
    let streamed = tokio::spawn(async move { events.rest().await });
    let (client_ends, sibling_ends) = (&pair.made["client"]["expires_at"], &pair.made["sibling"]["expires_at"]);

    let own = sibling.event_where("ticket.expiring", |told| told["data"]["side"] == "sibling").await;
    warned(&own, "sibling", sibling_ends);
    assert_eq!(sibling.closed().await, refused("ticket expired"));
    assert!(since(sibling_ends) < Duration::from_secs(1), "{:?}", since(sibling_ends));
    assert_eq!(pipe.closed().await, refused("ticket expired"));
    assert!(since(client_ends) < Duration::from_secs(1), "{:?}", since(client_ends));
    let streamed = streamed.await.expect("the whole stream");
    assert!(since(sibling_ends) < Duration::from_secs(1), "{:?}", since(sibling_ends));
    let told: Vec<_> = streamed.iter().filter(|told| told.data["data"]["side"] == "sibling").collect();
    assert_eq!(told.len(), 1, "{streamed:?}");
    warned(&told[0].data, "sibling", sibling_ends);

    // Of the client's ticket every sibling hears, and it is kept; of a sibling's own only itself does.
    let told = observer.event("ticket.expiring").await;
    warned(&told, "client", client_ends);
    let closed = observer.event("client.closed").await;
    assert_eq!([&closed["data"]["code"], &closed["data"]["reason"]], [&json!(3501), &json!("ticket expired")]);
    let expiring = |events: &[Value]| events.iter().filter(|told| kind_of(told) == "ticket.expiring").count();
    assert_eq!(expiring(&observer.events()), 1, "{:?}", observer.events());
    for node in [zero, one, two] {
        for (path, ticket) in [("/client", &pair.client_ticket), ("/sibling", &pair.sibling_ticket)] {
            let bearer = format!("Bearer {ticket}");
            assert_refused(&upgrade(node.addr, &pair.path(path), &[("Authorization", &bearer)]).await, "has expired");
        }
    }

    // Who was warned can renew: a new ticket of either side, and the pair goes on where it was.
    let renewed = observer.must("pair.ticket", json!({"side": "client", "ttl": 60})).await;
    let client_ticket = renewed["ticket"].as_str().expect("a ticket").to_owned();
    let mut pipe = ClientSocket::open(zero, &Pair { client_ticket, ..pair.clone() }).await;
    assert_eq!(observer.event("client.opened").await["data"]["epoch"], 2);
    // Who came without a ticket has none that could expire.
    walk_in.text("still here").await;
    assert_eq!(pipe.next_text().await, "still here");
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_revokes(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "hall", "text").await;
    let other = Pair::make(node, "hall", "text").await;
    let weak = ticket(node, &pair, json!({"side": "sibling", "grants": ["client.*"]})).await;
    let (jti, v4) = (claims(&pair.client_ticket)["jti"].clone(), "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
    let own = &pair.sibling_ticket;
    for (bearer, body, status, code, word) in [
        (ADMIN_KEY, json!({}), 400, "invalid_params", "one of jti, ticket and pair"),
        (ADMIN_KEY, json!({"jti": jti, "pair": pair.id}), 400, "invalid_params", "one of jti, ticket and pair"),
        (ADMIN_KEY, json!({"pair": pair.id, "why": "x"}), 400, "unknown_field", "why"),
        (ADMIN_KEY, json!([]), 400, "invalid_params", "object"),
        (ADMIN_KEY, json!({"pair": "pair_x"}), 400, "invalid_params", "body.pair"),
        (ADMIN_KEY, json!({"jti": "x"}), 400, "invalid_params", "body.jti"),
        (ADMIN_KEY, json!({"jti": v4}), 400, "invalid_params", "version 7"),
        (ADMIN_KEY, json!({"ticket": "x"}), 400, "invalid_params", "ticket: not a ticket"),
        ("nobody", json!({"pair": pair.id}), 401, "unauthorized", "not valid"),
        (&pair.client_ticket, json!({"pair": pair.id}), 403, "forbidden", "pair.ticket"),
        (&weak, json!({"pair": pair.id}), 403, "forbidden", "pair.ticket"),
        (own, json!({"pair": other.id}), 403, "forbidden", "own pair"),
        (own, json!({"ticket": other.client_ticket}), 403, "forbidden", "own pair"),
        (own, json!({"jti": jti}), 403, "forbidden", "admin key only"),
    ] {
        let reply = revoke(node, bearer, body.clone()).await;
        assert_eq!(reply.problem(status), code, "{body}: {}", reply.text());
        assert!(reply.text().contains(word), "{body}: {}", reply.text());
    }
    let reply = node.send("POST", "/v1/revocations", &[], Some(&json!({"pair": pair.id}))).await;
    assert_eq!(reply.problem(401), "unauthorized");
    // Nothing of that had an effect.
    let valid = async |ticket: &str| node.ask("GET", "/v1/validate", ticket, None).await.status == 200;
    for ticket in [own, &weak, &pair.client_ticket, &other.client_ticket, &other.sibling_ticket] {
        assert!(valid(ticket).await);
    }
    // A sibling that may hand out tickets takes back what is its pair's; also what has expired, which is no more.
    must_revoke(node, own, json!({"ticket": weak})).await;
    must_revoke(node, own, json!({"ticket": weak})).await;
    assert!(!valid(&weak).await && valid(own).await);
    let short = ticket(node, &pair, json!({"side": "sibling", "ttl": 1})).await;
    eventually("it has expired", async || (!valid(&short).await).then_some(())).await;
    must_revoke(node, own, json!({"ticket": short})).await;
    assert_refused(&node.ask("GET", "/v1/validate", &short, None).await, "has expired");
    // A pair that nobody knows: its tickets, if there are any, are void.
    must_revoke(node, ADMIN_KEY, json!({"pair": "pair_01jz0000000000000000000000"})).await;
    must_revoke(node, own, json!({"ticket": own})).await;
    assert_sibling_barred(&[node], &pair).await;
    assert!(valid(&pair.client_ticket).await);
}

/// A node in this process, on a broker that it may share.
async fn node_on(memory: &Memory) -> Arc<Node> {
    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        serve: ServeArgs,
    }
    let args = <Args as clap::Parser>::parse_from(["sibling", "--listen", "127.0.0.1:0", "--drain-seconds", "1"]);
    let (config, id) = (Config::mean(args.serve).expect("good settings"), NodeId::fresh());
    start(&config, Some((id, memory.link(id)))).await.expect("a node").node
}

fn ticket_of(pair: PairId) -> Ticket {
    Ticket::new(Side::Client, pair, Grants::default(), 4_000_000_000)
}

/// Another node's clock may be ahead when a pair is revoked; and nothing that is signed afterwards is void.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_may_differ() {
    let memory = Memory::new();
    let (here, there) = (node_on(&memory).await, node_on(&memory).await);
    let pair = PairId::fresh();
    let now = ticket_of(pair).made();
    here.revoke(here.all_of_pair(pair), true).await.expect("a revocation");
    let ahead = ticket_of(pair).made_after(now + 4_000);
    eventually("it is void on both", async || {
        (here.check_revoked(&ahead).is_err() && there.check_revoked(&ahead).is_err()).then_some(())
    })
    .await;
    for node in [&here, &there] {
        let signed = node.sign_ticket(Side::Client, pair, Grants::default(), None).expect("a ticket");
        let text = signed["ticket"].as_str().expect("a ticket");
        let signed = node.settings.ticket_keys.recognise(text).expect("its own");
        assert!(here.check_revoked(&signed).is_ok() && there.check_revoked(&signed).is_ok());
    }
    here.drain().await;
    there.drain().await;
}

/// Whoever may revoke can't fill every node's memory with it, and leaves the admin room.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_is_bounded() {
    let memory = Memory::new();
    let node = node_on(&memory).await;
    let fresh = || Revocation::of_ticket(&ticket_of(PairId::fresh()));
    let first = fresh();
    node.revoke(first, false).await.expect("room for one");
    for (by_admin, most) in [(false, 50_000), (true, 100_000)] {
        let mut taken = if by_admin { 50_000 } else { 1 };
        let failure = loop {
            match node.revoke(fresh(), by_admin).await {
                Ok(()) => taken += 1,
                Err(failure) => break failure,
            }
        };
        assert_eq!((taken, failure.fault), (most, Fault::Overloaded));
        assert!(failure.retry_after_ms().is_some() && failure.message.contains("end the pair instead"), "{failure}");
        node.revoke(first, by_admin).await.expect("it is revoked already");
    }
    node.drain().await;

    // One that starts with all of it to read.
    let since = Instant::now();
    let node = node_on(&memory).await;
    println!("{:?} to read 100000 revocations", since.elapsed());
    assert_eq!(node.revoke(fresh(), true).await.expect_err("all of it was read").fault, Fault::Overloaded);
    node.drain().await;
}
