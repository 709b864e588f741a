//! What is at a limit is taken, what is over it is refused, and what is asked twice is done once.

mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rstest::rstest;
use serde_json::{Value, json};
use support::{
    ADMIN_KEY, ClientSocket, Cluster, Fault, Gateway, Kind, Pair, Settings, Sibling, exchange, kind_of, upgrade_head,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

/// The largest message that a node with all defaults takes.
const LIMIT: usize = 1 << 20;
/// Within this a body that drips is answered and its connection closed.
const DRIPPING: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_frame_reaches_a_healthy_receiver() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let speaks = Pair::make(a, "cam", "binary").await;
    let mut sender = ClientSocket::open_and_told(a, &speaks).await;
    let mut receivers = Vec::new();
    for node in [a, b] {
        let pair = Pair::make(node, "cam", "binary").await;
        let pipe = ClientSocket::open_and_told(node, &pair).await;
        receivers.push((pipe, Sibling::open(a, &pair).await));
    }
    for (n, size) in [LIMIT / 2, LIMIT, LIMIT / 2, LIMIT, 1, LIMIT].into_iter().enumerate() {
        let frame: Vec<u8> = (0..size).map(|at| (at % 251) as u8 ^ n as u8).collect();
        sender.binary(frame.clone()).await;
        for (at, (pipe, _)) in receivers.iter_mut().enumerate() {
            let same = pipe.next().await == Message::binary(frame.clone());
            assert!(same, "frame {n} of {size} bytes, on node {at}, arrives as it was sent");
        }
    }
    for (at, (pipe, sibling)) in receivers.iter_mut().enumerate() {
        // The effect of a command is behind all that was told of the frames.
        sibling.must("client.set", json!({"meta": {"done": true}})).await;
        sibling.event("client.changed").await;
        let story = sibling.story();
        let complaint = story.iter().find(|params| kind_of(params) != "client.changed");
        assert_eq!(complaint, None, "the receiver on node {at} is healthy");
        assert!(pipe.is_open());
    }
    let (before, over) = (receivers[0].0.received(), vec![0; LIMIT + 1]);
    // It may be closed before it has written all of it.
    sender.try_send(Message::binary(over)).await;
    assert_eq!(sender.closed().await.code, Some(1009));
    for (pipe, sibling) in &mut receivers {
        sibling.must("client.push", json!({"base64": "AA=="})).await;
        assert_eq!(pipe.next().await, Message::binary(vec![0]), "nothing over the limit is delivered");
        assert_eq!(pipe.received(), before + 1);
    }
}

/// Sends a head and then a byte of the body each second; returns all that was answered, up to the end of the
/// connection, and how long that took.
async fn drip(node: &Gateway, head: String, byte: &'static [u8]) -> (String, Duration) {
    let started = Instant::now();
    let stream = TcpStream::connect(node.addr).await.expect("a connection");
    let (mut from, mut to) = stream.into_split();
    to.write_all(head.as_bytes()).await.expect("a written head");
    let dripping = tokio::spawn(async move {
        while to.write_all(byte).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(DRIPPING, async {
        let mut piece = [0; 4096];
        loop {
            match from.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(read) => answer.extend_from_slice(&piece[..read]),
            }
        }
    })
    .await;
    dripping.abort();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(ended.is_ok(), "not closed after {DRIPPING:?}: {head:?} got {answer:?}");
    (answer, started.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_drips_is_not_waited_for() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "hall", "text").await;
    let head = |line: &str, bearer: &str, framing: &str| {
        format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {bearer}\r\n\
             Content-Type: application/json\r\n{framing}\r\n\r\n",
            node.addr
        )
    };
    let commands = format!("POST {}", pair.path("/commands"));
    let length = "Content-Length: 1000";
    let drips = join_all([
        drip(node, head("POST /v1/pairs", ADMIN_KEY, length), b" "),
        drip(node, head("POST /v1/pairs", ADMIN_KEY, "Transfer-Encoding: chunked"), b"1\r\n \r\n"),
        drip(node, head(&commands, &pair.sibling_ticket, length), b" "),
        drip(node, head("PUT /v1/rooms/hall", ADMIN_KEY, length), b" "),
        drip(node, head("POST /v1/rooms/hall/messages", ADMIN_KEY, length), b" "),
    ]);
    for (n, (answer, took)) in drips.await.into_iter().enumerate() {
        assert!(answer.starts_with("HTTP/1.1 408 "), "drip {n} after {took:?}: {answer:?}");
        assert!(answer.to_ascii_lowercase().contains("application/problem+json"), "drip {n}: {answer:?}");
    }
    assert_eq!(pair.state(node).await["client"], "awaited", "the node still answers others");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_long_is_a_problem_of_its_own() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "hall", "text").await;
    let long = "x".repeat(70_000);
    let wish = json!({"room": "hall", "format": "text", "meta": {"long": long}});
    let refused = node.ask("POST", "/v1/pairs", ADMIN_KEY, Some(&wish)).await;
    refused.problem(413);
    let refused = node.ask("PUT", "/v1/rooms/hall", ADMIN_KEY, Some(&json!({"meta": {"long": long}}))).await;
    refused.problem(413);
    // Without a length, it shows only as it comes.
    let body = wish.to_string();
    let chunked = format!(
        "POST /v1/pairs HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        node.addr,
        body.len()
    );
    exchange(node.addr, chunked.as_bytes()).await.problem(413);
    assert_eq!(pair.state(node).await["client"], "awaited", "the node still answers");
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn an_end_asked_thrice_at_once_has_one_result(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let mut wrong = Vec::new();
    let said = |results: &[Result<Value, Fault>]| {
        let each = results.iter().map(|result| match result {
            Ok(result) => result.to_string(),
            Err(fault) => fault.code.to_string(),
        });
        each.collect::<Vec<_>>().join(", ")
    };
    for round in 0..10 {
        let live = round % 2 == 0;
        let pair = Pair::make(cluster.node(0), "hall", "text").await;
        let pipe = if live { Some(ClientSocket::open_and_told(cluster.node(round), &pair).await) } else { None };
        let params = json!({"reason": "enough", "key": "the-end"});
        let asks = (0..3).map(|n| pair.command(cluster.node(n), "pair.end", params.clone()));
        let results = join_all(asks).await;
        let first = results.iter().find_map(|result| result.clone().ok());
        let Some(first) = first else { panic!("round {round}, live {live}: {results:?}") };
        if results.iter().any(|result| result.as_ref() != Ok(&first)) {
            wrong.push(format!("round {round}, live {live}: {}", said(&results)));
        }
        if let Some(mut pipe) = pipe {
            assert_eq!(pipe.closed().await.code, Some(3510), "round {round}");
        }
        // Also when it has long been done.
        let late = pair.command(cluster.node(round + 1), "pair.end", params).await;
        if late.as_ref() != Ok(&first) {
            wrong.push(format!("round {round}, live {live}, late: {}", said(&[late])));
        }
        let mut woken = Sibling::wake(cluster.node(1), &pair, "start").await;
        woken.event("pair.ended").await;
        let ended = woken.story().iter().filter(|params| kind_of(params) == "pair.ended").count();
        assert_eq!(ended, 1, "round {round}, live {live}: it ended once");
    }
    assert!(wrong.is_empty(), "one key has one result:\n{}", wrong.join("\n"));
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_one_command(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut pipe = ClientSocket::open_and_told(cluster.node(0), &pair).await;
    let mut near = Sibling::open(cluster.node(0), &pair).await;
    let mut far = Sibling::open(cluster.node(1), &pair).await;
    let pushed = near.must("client.push", json!({"text": "one", "key": "k"})).await;
    for sibling in [&mut near, &mut far] {
        for (method, params) in [
            ("client.send", json!({"text": "one", "key": "k"})),
            ("client.set", json!({"meta": {"n": 1}, "key": "k"})),
            ("pair.end", json!({"key": "k"})),
        ] {
            let fault = sibling.call(method, params).await.expect_err("the key is another command's");
            assert_eq!((fault.code, &fault.data["code"]), (-32009, &json!("conflict")), "{method}: {fault:?}");
        }
        let again = sibling.must("client.push", json!({"text": "one", "key": "k"})).await;
        assert_eq!(again, pushed, "the command itself is answered as before");
    }
    let fault = pair.command(cluster.node(2), "pair.end", json!({"key": "k"})).await.expect_err("a conflict");
    assert_eq!(fault.code, -32009, "{fault:?}");
    near.must("client.push", json!({"text": "two", "key": "l"})).await;
    pipe.until_received(2).await;
    assert_eq!(pipe.texts(), ["one", "two"], "done once, and nothing ended");
    assert!(pipe.is_open());
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_validated_by_itself(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let node = cluster.node(1);
    for (side, ticket) in [("client", &pair.client_ticket), ("sibling", &pair.sibling_ticket)] {
        let by_query = node.get(&format!("/v1/validate?ticket={ticket}")).await;
        let by_header = node.ask("GET", "/v1/validate", ticket, None).await;
        for told in [by_query, by_header] {
            assert_eq!(told.status, 200, "{side}: {}", told.text());
            let told = told.json();
            assert_eq!((&told["pair"], &told["side"]), (&json!(pair.id), &json!(side)), "{told}");
            assert_eq!(told["valid"], true, "{told}");
            assert!(!told.to_string().contains(ticket.as_str()), "the ticket itself is not told: {told}");
        }
        // Asking is not opening.
        assert_eq!(pair.state(node).await["epoch"], 0);
    }
    let mut bad = pair.client_ticket.clone();
    bad.truncate(bad.len() - 2);
    for ticket in [bad.as_str(), "garbage", "..", ADMIN_KEY] {
        let refused = node.ask("GET", "/v1/validate", ticket, None).await;
        assert_eq!(refused.problem(401), "unauthorized", "{ticket:?}");
    }
    assert_eq!(node.get("/v1/validate").await.problem(401), "unauthorized");
    // An upgrade of an ended pair's client would be refused, and so is this.
    pair.command(cluster.node(0), "pair.end", json!({})).await.expect("an end");
    let gone = node.ask("GET", "/v1/validate", &pair.client_ticket, None).await;
    assert_eq!(gone.problem(410), "gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_handshake_is_refused_whatever_else_goes_on() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "hall", "text").await;
    let mut paths = Vec::new();
    for (tail, ticket) in [("/client", &pair.client_ticket), ("/sibling", &pair.sibling_ticket)] {
        paths.push((pair.path(tail), format!("Bearer {ticket}")));
    }
    let odd: [&[(&str, &str)]; 3] = [
        &[("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
        &[("Transfer-Encoding", "chunked"), ("Content-Length", "5")],
        &[("Sec-WebSocket-Key", "AQIDBAUGBwgJCgsMDQ4PEA==")],
    ];
    let mut asks = Vec::new();
    for _ in 0..3 {
        for (path, bearer) in &paths {
            for headers in odd {
                let mut all = vec![("Authorization", bearer.as_str())];
                all.extend_from_slice(headers);
                // The refusal waits for no body, and is the same when there is one.
                for body in ["", "0\r\n\r\n"] {
                    let head = upgrade_head(node.addr, path, &all) + body;
                    asks.push(async move { (exchange(node.addr, head.as_bytes()).await, head) });
                }
            }
        }
    }
    let mut wrong = Vec::new();
    for (reply, head) in join_all(asks).await {
        if reply.status != 400 {
            let odd: Vec<_> = head.lines().skip(7).collect();
            wrong.push(format!("{} {odd:?}: {}", reply.status, reply.text()));
        }
    }
    assert!(wrong.is_empty(), "{} handshakes are not refused with 400:\n{}", wrong.len(), wrong.join("\n"));
    let state: Value = pair.state(node).await;
    assert_eq!((&state["epoch"], &state["client"]), (&json!(0), &json!("awaited")), "none was opened: {state}");
    // The same handshake without the oddity works.
    ClientSocket::open(node, &pair).await.close(1000, "bye").await;
}
