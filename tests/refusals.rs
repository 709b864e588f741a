//! What is refused before there is a socket: tickets, handshakes, formats, bodies.

mod support;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rstest::rstest;
use serde_json::{Value, json};
use support::{
    ADMIN_KEY, ClientSocket, Cluster, Dial, Gateway, Kind, Pair, Settings, Sibling, eventually, upgrade, upgrade_head,
};

/// The path of one side of a pair.
fn side(pair: &Pair, side: &str) -> String {
    pair.path(&format!("/{side}"))
}

async fn upgrade_with(node: &Gateway, path: &str, ticket: &str) -> support::Reply {
    let bearer = format!("Bearer {ticket}");
    upgrade(node.addr, path, &[("Authorization", &bearer)]).await
}

/// The same upgrade as a browser asks for it; the code of the close that follows.
async fn browser_code(node: &Gateway, path: &str, ticket: &str) -> Option<u16> {
    let offered = if path.ends_with("/sibling") { "siblings.v1.json" } else { "siblings.text" };
    let protocols = match ticket {
        "" => offered.to_owned(),
        ticket => format!("{offered}, bearer.{ticket}"),
    };
    let closed = Dial::to(node, path).offer(&protocols).in_a_browser().closed().await;
    assert!(closed.reason.len() <= 123 && !closed.reason.is_empty(), "{closed:?}");
    closed.code
}

/// A ticket with one part replaced by other JSON.
fn forged(ticket: &str, part: usize, change: impl Fn(&mut Value)) -> String {
    let mut parts: Vec<_> = ticket.split('.').map(str::to_owned).collect();
    let bytes = URL_SAFE_NO_PAD.decode(&parts[part]).expect("a JWT");
    let mut value: Value = serde_json::from_slice(&bytes).expect("a JWT");
    change(&mut value);
    parts[part] = URL_SAFE_NO_PAD.encode(value.to_string());
    parts.join(".")
}

fn unsigned(ticket: &str) -> String {
    let forged = forged(ticket, 0, |header| header["alg"] = json!("none"));
    let (body, _) = forged.rsplit_once('.').expect("three parts");
    format!("{body}.")
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_ticket_is_refused_by_status_and_to_browsers_by_code(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let node = cluster.node(1);
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let claims = |change: fn(&mut Value)| forged(&pair.client_ticket, 1, change);
    let bad = [
        ("none", String::new()),
        ("garbage", "garbage".to_owned()),
        ("dots", "..".to_owned()),
        ("no signature", unsigned(&pair.client_ticket)),
        ("a later end", claims(|claims| claims["exp"] = json!(4_000_000_000_u64))),
        ("more grants", claims(|claims| claims["grants"] = json!(["*"]))),
        ("both sides", claims(|claims| claims["aud"] = json!(["client", "sibling"]))),
        ("another alg", forged(&pair.client_ticket, 0, |header| header["alg"] = json!("HS512"))),
        ("a kid", forged(&pair.client_ticket, 0, |header| header["kid"] = json!("../../etc/passwd"))),
        ("cut off", pair.client_ticket[..pair.client_ticket.len() - 2].to_owned()),
        ("long", "a".repeat(6_000)),
    ];
    for (case, ticket) in &bad {
        for path in [side(&pair, "client"), side(&pair, "sibling")] {
            let refused = match ticket.as_str() {
                "" => upgrade(node.addr, &path, &[]).await,
                ticket => upgrade_with(node, &path, ticket).await,
            };
            assert_eq!(refused.problem(401), "unauthorized", "{case} at {path}");
            assert_eq!(browser_code(node, &path, ticket).await, Some(3501), "{case} at {path}");
        }
        let refused = node.ask("GET", &pair.path(""), ticket, None).await;
        assert_eq!(refused.status, 401, "{case}: {}", refused.text());
    }
    // The good ones still work, in each of the three ways to present them.
    let mut pipe = ClientSocket::open(node, &pair).await;
    let by_query = Dial::to(node, side(&pair, "sibling")).query("ticket", &pair.sibling_ticket);
    let mut sibling = Sibling::over(support::Codec::Json, by_query).await;
    let protocols = format!("bearer.{}, siblings.v1.json", pair.sibling_ticket);
    let by_protocol = Dial::to(node, side(&pair, "sibling")).offer(&protocols).in_a_browser();
    let (_ws, response) = by_protocol.connect().await.expect("a browser's sibling");
    assert_eq!(response.headers()["sec-websocket-protocol"], "siblings.v1.json");
    sibling.must("client.push", json!({"text": "hi"})).await;
    assert_eq!(pipe.next_text().await, "hi");
    let printed = (0..cluster.size()).map(|at| cluster.node(at).printed()).collect::<String>();
    let signature = pair.sibling_ticket.rsplit('.').next().expect("a JWT");
    assert!(!printed.contains(signature), "a ticket is never logged");
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn swapped_sides_and_other_pairs_are_refused_and_tell_nothing(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let node = cluster.node(1);
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let other = Pair::make(cluster.node(0), "hall", "text").await;
    // The wrong side of the right pair.
    for (path, ticket) in
        [(side(&pair, "client"), &pair.sibling_ticket), (side(&pair, "sibling"), &pair.client_ticket)]
    {
        let refused = upgrade_with(node, &path, ticket).await;
        assert!(matches!(refused.status, 401 | 403), "{path}: {}", refused.text());
        refused.problem(refused.status);
        let code = browser_code(node, &path, ticket).await;
        assert!(matches!(code, Some(3501 | 3503)), "{path}: {code:?}");
    }
    for path in ["", "/events"] {
        let refused = node.ask("GET", &pair.path(path), &pair.client_ticket, None).await;
        assert!(matches!(refused.status, 401 | 403), "{path}: {}", refused.text());
    }
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "pair.get"});
    let path = pair.path("/commands");
    let refused = node.ask("POST", &path, &pair.client_ticket, Some(&call)).await;
    assert!(matches!(refused.status, 401 | 403), "{}", refused.text());

    // "Not yours" and "not there" are the same answer.
    let made_up = format!("{}{}", &pair.id[..pair.id.len() - 4], "zzzz");
    for tail in ["client", "sibling"] {
        let ticket = if tail == "client" { &other.client_ticket } else { &other.sibling_ticket };
        let mut answers = Vec::new();
        for id in [&pair.id, &made_up] {
            let path = format!("/v1/pairs/{id}/{tail}");
            let refused = upgrade_with(node, &path, ticket).await;
            assert!(matches!(refused.status, 401 | 403 | 404), "{path}: {}", refused.text());
            let code = browser_code(node, &path, ticket).await;
            assert!(matches!(code, Some(3501 | 3503 | 3504)), "{path}: {code:?}");
            let mut body = refused.json();
            body["trace_id"] = Value::Null;
            answers.push((refused.status, body.to_string().replace(id, "ID"), code));
        }
        assert_eq!(answers[0], answers[1]);
    }
    for (method, tail) in [("GET", ""), ("DELETE", ""), ("GET", "/events"), ("POST", "/commands")] {
        let mut answers = Vec::new();
        for id in [&pair.id, &made_up] {
            let path = format!("/v1/pairs/{id}{tail}");
            let body = (method == "POST").then_some(&call);
            let refused = node.ask(method, &path, &other.sibling_ticket, body).await;
            assert!(matches!(refused.status, 401 | 403 | 404), "{path}: {}", refused.text());
            answers.push(refused.status);
        }
        assert_eq!(answers[0], answers[1], "{method} {tail}");
    }
    // Whoever may see every pair is told that one is not there.
    let missing = node.ask("GET", &format!("/v1/pairs/{made_up}"), ADMIN_KEY, None).await;
    assert_eq!(missing.problem(404), "not_found");
    for id in ["x", "..", "%2e%2e", "pair_", "pair_*", "pair_%00", "pair_%7Btag%7D"] {
        let missing = node.ask("GET", &format!("/v1/pairs/{id}"), ADMIN_KEY, None).await;
        assert!(matches!(missing.status, 400 | 404), "{id}: {}", missing.text());
    }
    assert_eq!(node.ask("GET", &pair.path(""), "not-the-admin", None).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_ends_with_its_time() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut sibling = Sibling::open(cluster.node(0), &pair).await;
    for name in ["client", "sibling"] {
        let wish = json!({"side": name, "ttl": 1});
        let ticket = sibling.must("pair.ticket", wish).await;
        let ticket = ticket["ticket"].as_str().expect("a ticket").to_owned();
        let path = side(&pair, name);
        let node = cluster.node(1);
        assert_eq!(upgrade_with(node, &path, &ticket).await.status, 101, "a fresh ticket opens");
        let refused = eventually("the ticket is over", async || {
            let answer = upgrade_with(node, &path, &ticket).await;
            (answer.status != 101).then_some(answer)
        })
        .await;
        assert_eq!(refused.problem(401), "unauthorized");
        assert_eq!(browser_code(node, &path, &ticket).await, Some(3501));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_common_format_is_refused_and_names_the_rooms() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let first = Pair::make(a, "cam", "binary").await;
    let _live = ClientSocket::open(a, &first).await;
    let public = "/v1/rooms/cam/client?format=text,json";
    let refused = upgrade(b.addr, public, &[]).await;
    assert_eq!(refused.problem(406), "no_common_format");
    assert!(refused.text().contains("binary"), "{}", refused.text());
    let offered = [("Sec-WebSocket-Protocol", "siblings.text, siblings.json")];
    let refused = upgrade(b.addr, "/v1/rooms/cam/client", &offered).await;
    assert_eq!(refused.problem(406), "no_common_format");
    let closed = Dial::to(b, public).in_a_browser().closed().await;
    assert_eq!(closed.code, Some(3516), "{closed:?}");
    let body = json!({"room": "cam", "format": ["text", "json"]});
    let refused = b.send("POST", "/v1/pairs", &[], Some(&body)).await;
    assert_eq!(refused.problem(406), "no_common_format");

    // One that says nothing, or has it among its choices, takes the room's.
    for wish in [json!({"room": "cam"}), json!({"room": "cam", "format": ["text", "binary"]})] {
        let pair = Pair::from(b, wish).await;
        assert_eq!(pair.made["format"], "binary");
        let _pipe = ClientSocket::open(b, &pair).await;
    }
    let dial = Dial::to(b, "/v1/rooms/cam/client").offer("siblings.text, siblings.binary");
    let (_ws, response) = dial.connect().await.expect("a common format");
    assert_eq!(response.headers()["sec-websocket-protocol"], "siblings.binary");
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_are_none_are_refused() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let addr = cluster.node(0).addr;
    let good = upgrade_head(addr, "/v1/rooms/hall/client", &[]);
    let table = [
        ("no upgrade", good.replace("Upgrade: websocket\r\n", ""), &[400, 426][..]),
        ("no connection", good.replace("Connection: Upgrade\r\n", ""), &[400, 426]),
        ("version 12", good.replace("Version: 13", "Version: 12"), &[400, 426]),
        ("no version", good.replace("Sec-WebSocket-Version: 13\r\n", ""), &[400, 426]),
        ("no key", good.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), &[400]),
        ("a short key", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), &[400]),
        ("a key that is none", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "******"), &[400]),
        ("POST", good.replace("GET ", "POST "), &[400, 405]),
        ("two hosts", good.replace("Connection:", "Host: evil.example\r\nConnection:"), &[400]),
        ("no room", good.replace("/rooms/hall/", "/rooms/ha%20ll/"), &[400, 404]),
        ("a path upwards", good.replace("/rooms/hall/", "/rooms/%2e%2e%2f%00/"), &[400, 404]),
    ];
    let mut taken = Vec::new();
    for (case, head, statuses) in table {
        assert_ne!(head, good, "{case} is no change");
        let refused = support::exchange(addr, head.as_bytes()).await;
        if !statuses.contains(&refused.status) {
            taken.push(format!("{case}: {} {}", refused.status, refused.text()));
        }
    }
    assert!(taken.is_empty(), "{taken:#?}");
    assert_eq!(support::exchange(addr, good.as_bytes()).await.status, 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_read_strictly() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let big = json!({"x": "y".repeat(4_200)});
    let table = [
        (json!({"room": "a", "colour": 1}), "unknown_field", "colour"),
        (json!({"room": "a", "__proto__": {}}), "unknown_field", "__proto__"),
        (json!({}), "", "room"),
        (json!({"room": 7}), "", "room"),
        (json!({"room": ""}), "", ""),
        (json!({"room": "a b"}), "", ""),
        (json!({"room": "a*"}), "", ""),
        (json!({"room": "\u{fc}"}), "", ""),
        (json!({"room": "a\u{0}"}), "", ""),
        (json!({"room": "{tag}"}), "", ""),
        (json!({"room": "r".repeat(129)}), "", ""),
        (json!({"room": "a", "format": "smoke"}), "", "format"),
        (json!({"room": "a", "meta": 5}), "", "meta"),
        (json!({"room": "a", "meta": big}), "", "meta"),
        (json!({"room": "a", "linger": -1}), "", "linger"),
        (json!({"room": "a", "grants": "pair.get"}), "", "grants"),
        (json!([{"room": "a"}]), "", ""),
        (json!("a"), "", ""),
    ];
    let mut unnamed = Vec::new();
    for (body, code, word) in table {
        let refused = node.send("POST", "/v1/pairs", &[], Some(&body)).await;
        let status = refused.status;
        assert!(matches!(status, 400 | 413 | 422), "{body}: {status}");
        let told = refused.problem(status);
        assert!(code.is_empty() || told == code && status == 400, "{body}: {}", refused.text());
        if !refused.text().contains(word) {
            unnamed.push(format!("{body}: {word} is not named: {}", refused.text()));
        }
    }
    let length = |body: &str| {
        let head = format!("POST /v1/pairs HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", node.addr);
        format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    for body in ["", "{", "{\"room\":\"a\"} x", "{\"room\":\"a\",\"room\":\"b\"}", "nul"] {
        let refused = support::exchange(node.addr, length(body).as_bytes()).await;
        refused.problem(400);
    }
    assert!(unnamed.is_empty(), "what is wrong is named: {unnamed:#?}");
    // What an anonymous maker may not have.
    for grants in [json!(["room.close"]), json!(["*"]), json!(["room.*"])] {
        let wish = json!({"room": "a", "grants": grants});
        let refused = node.send("POST", "/v1/pairs", &[], Some(&wish)).await;
        assert_eq!(refused.problem(403), "forbidden", "{wish}");
    }
    for (method, path) in [("GET", "/v1/nothing"), ("GET", "/v1/pairs/x/y"), ("GET", "/v1")] {
        node.send(method, path, &[], None).await.problem(404);
    }
    node.send("PUT", "/v1/pairs", &[], Some(&json!({}))).await.problem(405);
    // The edge that still is allowed.
    Pair::make(node, &"r".repeat(128), "text").await;
    Pair::make(node, "A-Z_a.z~0/9", "any").await;
}
