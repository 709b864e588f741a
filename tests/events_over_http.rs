//! The sibling without a WebSocket: commands by POST, events as Server-Sent Events.

mod support;

use rstest::rstest;
use serde_json::{Value, json};
use support::{ClientSocket, Cluster, Dial, Kind, Pair, Settings, Sibling, Sse, kind_of};

async fn stream(cluster: &Cluster, node: usize, pair: &Pair, query: &str, from: &str) -> Sse {
    let bearer = format!("Bearer {}", pair.sibling_ticket);
    let mut headers = vec![("Authorization", bearer.as_str())];
    if !from.is_empty() {
        headers.push(("Last-Event-ID", from));
    }
    let path = pair.path(&format!("/events{query}"));
    let sse = Sse::open(cluster.node(node), &path, &headers).await;
    assert_eq!(sse.head.status, 200, "{:?}", sse.head);
    let kind = sse.head.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    sse
}

/// The next event of the pair's history.
async fn next_kept(sse: &mut Sse) -> Value {
    loop {
        let told = sse.next().await;
        if support::is_kept(&told.data) {
            assert_eq!(json!(told.id), told.data["cursor"], "the id is the cursor");
            return told.data;
        }
    }
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn the_stream_tells_what_a_sibling_hears_and_resumes(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut awake = Sibling::open(cluster.node(0), &pair).await;
    let mut live = stream(&cluster, 1, &pair, "", "").await;
    let first = live.next().await;
    assert_eq!(kind_of(&first.data), "ready", "{first:?}");
    let _pipe = ClientSocket::open(cluster.node(0), &pair).await;
    for n in 0..30 {
        let params = json!({"meta": {"n": n}});
        pair.command(cluster.node(2), "client.set", params).await.expect("a change");
    }
    awake.until("all events", |all| all.len() == 32).await;
    let story = awake.story();
    for event in &story {
        assert_eq!(next_kept(&mut live).await, *event);
    }
    let cursor = story[10]["cursor"].as_str().expect("a cursor");
    let by_query = format!("?cursor={cursor}");
    for (query, header, from) in [("", cursor, 11), (by_query.as_str(), "", 11), ("?cursor=start", "", 0)] {
        let mut woken = stream(&cluster, 2, &pair, query, header).await;
        for event in &story[from..] {
            assert_eq!(next_kept(&mut woken).await, *event, "{query} {header}");
        }
    }
    // A browser reconnects with its old URL and the header: the header is the newer of the two.
    let mut woken = stream(&cluster, 2, &pair, "?cursor=start", cursor).await;
    assert_eq!(next_kept(&mut woken).await, story[11]);
    // The ticket in the query, for an EventSource, which can set no header.
    let path = pair.path(&format!("/events?cursor=start&ticket={}", pair.sibling_ticket));
    let mut plain = Sse::open(cluster.node(1), &path, &[]).await;
    assert_eq!(next_kept(&mut plain).await, story[0]);
    // And live again behind the replay.
    awake.must("client.set", json!({"meta": {"n": "last"}})).await;
    for event in &story[12..] {
        assert_eq!(next_kept(&mut woken).await, *event);
    }
    awake.until("one more event", |all| all.len() == 34).await;
    assert_eq!(next_kept(&mut woken).await, *awake.story().last().expect("an event"));
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_stream_tells_its_gap(#[case] kind: Kind) {
    let settings = Settings::new().set("HISTORY_EVENTS", 32).set("HISTORY_SECONDS", 0);
    let cluster = Cluster::start(kind, &settings).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let _pipe = ClientSocket::open(cluster.node(0), &pair).await;
    let mut awake = Sibling::wake(cluster.node(0), &pair, "start").await;
    awake.pour(300, |n| ("client.set", json!({"meta": {"n": n}}))).await;
    awake.until("all replies and events", |all| all.len() == 602).await;
    let story = awake.story();
    let mut woken = stream(&cluster, 1, &pair, "?cursor=start", "").await;
    let told = loop {
        let told = woken.next().await;
        if kind_of(&told.data) != "ready" {
            break told;
        }
    };
    assert_eq!(kind_of(&told.data), "gap", "{told:?}");
    let lost = told.data["data"]["lost"].as_u64().expect("the true count");
    let lost = usize::try_from(lost).expect("a count");
    assert!(lost > 0 && lost <= story.len() - 32, "{lost} of {}", story.len());
    for event in &story[lost..] {
        assert_eq!(next_kept(&mut woken).await, *event);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_by_post_keep_json_rpc() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let node = cluster.node(1);
    let pair = Pair::make(node, "hall", "text").await;
    let mut pipe = ClientSocket::open(cluster.node(0), &pair).await;
    let call = |id: Value, method: &str, params: Value| json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
    let batch = json!([
        call(json!("a"), "client.push", json!({"text": "one"})),
        call(json!(2), "no.such.method", json!({})),
        {"jsonrpc": "2.0", "method": "client.set", "params": {"meta": {}}},
    ]);
    let reply = pair.post(node, &batch).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    let each = body.as_array().expect("a batch");
    assert_eq!(each.len(), 2, "{body}");
    let of = |id: Value| each.iter().find(|reply| reply["id"] == id).expect("a reply to each");
    assert_eq!(of(json!("a"))["result"]["position"], 1, "{body}");
    assert_eq!(of(json!(2))["error"]["code"], -32601, "{body}");
    assert_eq!(pipe.next_text().await, "one");

    // A JSON-RPC error is a reply, and so is one to what can't be read.
    let whole: Vec<Value> = (0..65).map(|n| call(json!(n), "pair.get", json!({}))).collect();
    for (message, code) in [(json!([]), -32600), (json!(7), -32600), (json!(whole), -32600)] {
        let reply = pair.post(node, &message).await;
        let body = reply.json();
        assert_eq!((&body["error"]["code"], &body["id"]), (&json!(code), &Value::Null), "{body}");
    }
    let quiet = json!({"jsonrpc": "2.0", "method": "client.push", "params": {"text": "two"}});
    let reply = pair.post(node, &quiet).await;
    assert!(matches!(reply.status, 202 | 204), "{} {}", reply.status, reply.text());
    assert!(reply.body.is_empty(), "a notification has no reply");
    assert_eq!(pipe.next_text().await, "two");
    let bare = node.send("POST", &pair.path("/commands"), &[], Some(&quiet)).await;
    assert_eq!(bare.problem(401), "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_answer_and_the_pipe_takes_a_query_format() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(node.get(path).await.status, 200, "{path}");
    }
    let (ws, _) = Dial::to(node, "/v1/rooms/hall/client?format=json,text").connect().await.expect("a pipe");
    let mut one = ClientSocket::over(ws);
    let (ws, _) = Dial::to(node, "/v1/rooms/hall/client").connect().await.expect("a pipe");
    let mut two = ClientSocket::over(ws);
    one.text("not { json").await;
    assert_eq!(two.next_text().await, "not { json", "payload is never parsed");
}
