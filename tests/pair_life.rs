//! A pair from its making to its end: tickets, keys, rooms and members, and what remains.

mod support;

use rstest::rstest;
use serde_json::{Value, json};
use support::{
    ADMIN_KEY, Arrival, ClientSocket, Cluster, Codec, Dial, Kind, Pair, RawSocket, Settings, Sibling, deep,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_maker_gets_works_as_it_is() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let wish = json!({"room": "a/b", "format": ["json", "text"], "meta": {"who": "me"}, "linger": 30});
    let pair = Pair::from(node, wish).await;
    assert!(pair.id.starts_with("pair_"), "{}", pair.made);
    assert_eq!((&pair.made["room"], &pair.made["format"]), (&json!("a/b"), &json!("json")));
    for side in ["client", "sibling"] {
        let side_of = &pair.made[side];
        let url = side_of["url"].as_str().expect("a URL");
        assert_eq!(url, format!("ws://{}/v1/pairs/{}/{side}", node.addr, pair.id));
        use time::format_description::well_known::Rfc3339;
        let at = side_of["expires_at"].as_str().expect("a time");
        let at = time::OffsetDateTime::parse(at, &Rfc3339).expect("RFC 3339");
        assert!(at > time::OffsetDateTime::now_utc(), "{side_of}");
    }
    let granted = pair.made["sibling"]["grants"].to_string();
    for grant in ["pair.", "client.", "room.get", "room.members"] {
        assert!(granted.contains(grant), "{grant} in {granted}");
    }
    for grant in ["room.set", "room.kick", "room.close"] {
        assert!(!granted.contains(grant), "{grant} in {granted}");
    }
    let state = pair.state(node).await;
    assert_eq!((&state["client"], &state["epoch"]), (&json!("awaited"), &json!(0)), "{state}");
    assert_eq!(deep(&state, "meta"), Some(&json!({"who": "me"})), "{state}");
    let (path, ticket) = (pair.path("/client"), pair.client_ticket.as_str());
    // As a client that names its formats by subprotocol, and is told the one that was chosen.
    let dial = Dial::to(node, path).bearer(ticket).offer("siblings.json, siblings.text");
    let (_ws, response) = dial.connect().await.expect("a client socket");
    assert_eq!(response.headers()["sec-websocket-protocol"], "siblings.json");

    // An account may be given more.
    let more = json!({"room": "a/b", "format": "json", "grants": ["*"]});
    let pair = Pair::by_admin(node, more).await;
    assert_eq!(pair.made["sibling"]["grants"], json!(["*"]));
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_public_pipe_brings_its_pair_along(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let node = cluster.node(0);
    let dial = Dial::to(node, "/v1/rooms/a%2Fb/client?format=text");
    let (ws, response) = dial.connect().await.expect("a public pipe");
    let header = |name: &str| {
        let value = response.headers().get(name).unwrap_or_else(|| panic!("no {name}: {response:?}"));
        value.to_str().expect("ASCII").to_owned()
    };
    let (id, ticket) = (header("sibling-pair"), header("sibling-ticket"));
    let mut pipe = ClientSocket::over(ws);
    let path = format!("/v1/pairs/{id}/sibling");
    let dial = Dial::to(cluster.node(1), path).bearer(&ticket);
    let mut sibling = Sibling::over(Codec::Json, dial).await;
    let ready = sibling.ready();
    assert_eq!(ready["data"]["pair"], json!(id), "{ready}");
    assert_eq!(ready["data"]["protocol"], 1, "{ready}");
    assert_eq!(ready["data"]["state"]["room"], "a/b", "{ready}");
    assert_eq!(ready["data"]["state"]["client"], "live", "{ready}");
    assert!(ready["data"]["grants"].is_array() && ready["data"]["node"].is_string(), "{ready}");
    sibling.must("client.push", json!({"text": "hello"})).await;
    assert_eq!(pipe.next_text().await, "hello");
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_what_it_says(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut sibling = Sibling::open(cluster.node(1), &pair).await;
    let told = sibling.must("pair.ticket", json!({"side": "client", "ttl": 60})).await;
    let ticket = told["ticket"].as_str().expect("a ticket");
    let dial = Dial::to(cluster.node(2), pair.path("/client")).bearer(ticket);
    let _pipe = ClientSocket::over(dial.open().await);
    sibling.event("client.opened").await;
    let told = sibling.must("pair.ticket", json!({"side": "sibling", "grants": ["client.*"]})).await;
    let ticket = told["ticket"].as_str().expect("a ticket");
    let dial = Dial::to(cluster.node(2), pair.path("/sibling")).bearer(ticket);
    let mut guest = Sibling::over(Codec::Json, dial).await;
    assert_eq!(guest.ready()["data"]["grants"], json!(["client.*"]));
    guest.must("client.ping", json!({})).await;
    let fault = guest.call("pair.get", json!({})).await.expect_err("not granted");
    assert_eq!(fault.code, -32003, "{fault:?}");
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn every_event_names_its_cause_where_it_has_one(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let pipe = ClientSocket::open(cluster.node(0), &pair).await;
    let mut one = Sibling::open(cluster.node(1), &pair).await;
    let mut two = Sibling::open_in(Codec::MessagePack, cluster.node(2), &pair).await;
    // With a key, that is the name of the command, whoever gave it; all siblings hear the same.
    two.must("client.set", json!({"meta": {"n": 2}, "key": "set-2"})).await;
    let event = one.event("client.changed").await;
    assert_eq!(event["cause"]["key"], "set-2", "{event}");
    assert_eq!(two.event("client.changed").await, event);
    // Without a key, the cause is the command's id and its sibling.
    let id = one.ask("client.set", json!({"meta": {"n": 3}})).await;
    one.reply(id).await.expect("a reply");
    let event = one.event("client.changed").await;
    assert_eq!(event["cause"]["id"], id, "{event}");
    assert!(event["cause"].get("sibling").is_some_and(|sibling| !sibling.is_null()), "{event}");
    // What happens by itself has no cause.
    pipe.close(1000, "bye").await;
    let closed = one.event("client.closed").await;
    assert_eq!(closed.get("cause"), None, "{closed}");
    assert_eq!(closed["data"]["by"], "client", "{closed}");
    assert_eq!((&closed["data"]["code"], &closed["data"]["reason"]), (&json!(1000), &json!("bye")));
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn members_are_told_in_pages(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (mut pairs, mut pipes) = (Vec::new(), Vec::new());
    for n in 0..7 {
        let wish = json!({"room": "hall", "format": "text", "meta": {"n": n}});
        let pair = Pair::from(cluster.node(n), wish).await;
        pipes.push(ClientSocket::open(cluster.node(n), &pair).await);
        pairs.push(pair);
    }
    let elsewhere = Pair::make(cluster.node(0), "attic", "text").await;
    let _elsewhere = ClientSocket::open(cluster.node(0), &elsewhere).await;
    let mut sibling = Sibling::open(cluster.node(2), &pairs[0]).await;
    let room = sibling.must("room.get", json!({})).await;
    assert_eq!(deep(&room, "format"), Some(&json!("text")), "{room}");
    let mut found = Vec::new();
    let mut params = json!({"limit": 3});
    for size in [3, 3, 1] {
        let page = sibling.must("room.members", params).await;
        let members = page["members"].as_array().unwrap_or_else(|| panic!("no members: {page}"));
        assert_eq!(members.len(), size, "{page}");
        found.extend(members.iter().map(|member| member["pair"].clone()));
        params = json!({"limit": 3, "after": found.last()});
    }
    found.sort_by_key(ToString::to_string);
    let mut expected: Vec<_> = pairs.iter().map(|pair| json!(pair.id)).collect();
    expected.sort_by_key(ToString::to_string);
    assert_eq!(found, expected);
    // One that leaves is no member any more, at once for those who were told.
    sibling.must("client.close", json!({})).await;
    let page = sibling.must("room.members", json!({})).await;
    assert_eq!(page["members"].as_array().map(Vec::len), Some(6), "{page}");
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn an_ended_pair_is_gone_on_every_node(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    for over_http in [false, true] {
        let pair = Pair::make(cluster.node(0), "hall", "text").await;
        let mut pipe = ClientSocket::open(cluster.node(0), &pair).await;
        let mut one = Sibling::open(cluster.node(1), &pair).await;
        let mut two = Sibling::open(cluster.node(2), &pair).await;
        if over_http {
            let path = pair.path("");
            let done = cluster.node(1).ask("DELETE", &path, &pair.sibling_ticket, None).await;
            assert_eq!((done.status, done.body.len()), (204, 0));
        } else {
            one.must("pair.end", json!({"reason": "enough"})).await;
        }
        let end = pipe.closed().await;
        assert_eq!(end.code, Some(3510));
        for sibling in [&mut one, &mut two] {
            let closed = sibling.event("client.closed").await;
            assert_eq!(closed["data"]["code"], 3510, "{closed}");
            sibling.event("pair.ended").await;
        }
        for node in 0..3 {
            let node = cluster.node(node);
            let bearer = format!("Bearer {}", pair.client_ticket);
            let headers = [("Authorization", bearer.as_str())];
            let refused = support::upgrade(node.addr, &pair.path("/client"), &headers).await;
            assert_eq!(refused.problem(410), "gone");
            let dial = pair.dial_client(node).offer("siblings.text").in_a_browser();
            assert_eq!(dial.closed().await.code, Some(3510));
            for method in ["client.ping", "client.send", "client.set", "client.close", "client.move"] {
                let params = match method {
                    "client.send" => json!({"text": "x"}),
                    "client.move" => json!({"room": "attic"}),
                    "client.set" => json!({"meta": {}}),
                    _ => json!({}),
                };
                let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
                let reply = pair.post(node, &call).await;
                let body = reply.json();
                assert_eq!(body["error"]["code"], -32010, "{method}: {} {body}", reply.status);
            }
        }
        if one.is_open() {
            let fault = one.call("client.ping", json!({})).await.expect_err("the pair is gone");
            assert_eq!((fault.code, &fault.data["code"]), (-32010, &json!("gone")), "{fault:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_command_does_not_hold_up_the_next() {
    let cluster = Cluster::redis(2, &Settings::new().set("COMMAND_TIMEOUT_SECONDS", 2)).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "hall", "text").await;
    // A peer that never reads answers no ping.
    let _deaf = RawSocket::upgrade(node, &pair.path("/client"), &pair.client_ticket, None).await;
    let mut sibling = Sibling::open(cluster.node(1), &pair).await;
    let slow = sibling.ask("client.ping", json!({})).await;
    let mut quick = Vec::new();
    for n in 0..100 {
        quick.push(sibling.ask("client.set", json!({"meta": {"n": n}})).await);
    }
    for id in quick {
        sibling.reply(id).await.expect("a quick reply");
    }
    let early = sibling.arrivals().iter().any(|arrival| match arrival {
        Arrival::Reply(reply) => reply["id"] == slow,
        Arrival::Event(_) => false,
    });
    assert!(!early, "the ping still waits for its answer");
    let fault = sibling.reply(slow).await.expect_err("no answer to the ping");
    assert_eq!((fault.code, &fault.data["retryable"]), (-32008, &json!(true)), "{fault:?}");
    assert!(sibling.is_open());
}

#[tokio::test(flavor = "multi_thread")]
async fn discover_lists_every_command() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut sibling = Sibling::open(cluster.node(0), &pair).await;
    let document = sibling.must("rpc.discover", json!({})).await;
    assert!(document["openrpc"].is_string(), "{document}");
    let methods = document["methods"].as_array().expect("methods");
    let names: Vec<_> = methods.iter().filter_map(|method| method["name"].as_str()).collect();
    for name in [
        "pair.get",
        "pair.ticket",
        "pair.end",
        "client.send",
        "client.push",
        "client.move",
        "client.pause",
        "client.resume",
        "client.set",
        "client.close",
        "client.ping",
        "room.get",
        "room.members",
        "rpc.discover",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
        let method = methods.iter().find(|method| method["name"] == name).expect("just found");
        assert!(method["params"].is_array(), "{method}");
    }
    // And what it lists is there: none is unknown.
    for name in names {
        if let Err(fault) = sibling.call(name, json!({"no_such_param": 1})).await {
            assert_ne!(fault.code, -32601, "{name} is listed and unknown");
        }
    }
    let state = cluster.node(0).ask("GET", &pair.path(""), ADMIN_KEY, None).await;
    assert_eq!(state.json()["siblings"], json!(1), "{}", state.text());
    assert_ne!(state.json()["client"], Value::Null);
}
