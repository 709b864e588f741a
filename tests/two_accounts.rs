//! Two accounts that try everything against each other's pairs and rooms: all of it is refused, and nothing of it has an
//! effect.

mod support;

use std::{
    cell::Cell,
    time::{SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use support::{ADMIN_KEY, Agent, Cluster, Dial, Gateway, Pair, Reply, Settings, room_path};
use tokio_tungstenite::tungstenite::Error;

const SECRET: &str = "the secret of an application, for acceptance tests only";

/// The token of an account for rooms of one pattern.
fn token(sub: &str, rooms: &str, grants: &[&str]) -> String {
    let exp = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() + 600;
    let claims = json!({"sub": sub, "exp": exp, "siblings": {"rooms": [rooms], "grants": grants}});
    encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("a token")
}

async fn make(node: &Gateway, token: &str, room: &str) -> Reply {
    node.ask("POST", "/v1/pairs", token, Some(&json!({"room": room, "format": "text", "grants": ["*"]}))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_another_account_can_be_touched() {
    let settings = Settings::new().set("DEFAULT_PUBLIC", "off").set("JWT_KEY", SECRET);
    let cluster = Cluster::redis(2, &settings).await;
    let (here, there) = (cluster.node(0), cluster.node(1));
    // Both may do everything, with what is theirs; "shared/*" is for both, and belongs to who specifies it first.
    let (ann, bob) = (token("ann", "ann/*", &["*"]), token("bob", "bob/*", &["*"]));
    let (ann_shared, bob_shared) = (token("ann", "shared/*", &["*"]), token("bob", "shared/*", &["*"]));

    let spec = json!({"format": "text", "meta": {"of": "ann"}});
    for (token, room) in [(&ann, "ann/hall"), (&ann_shared, "shared/hall")] {
        let reply = here.ask("PUT", &room_path(room), token, Some(&spec)).await;
        assert_eq!((reply.status, &reply.json()["owner"]), (200, &json!("ann")), "{}", reply.text());
    }
    let pair = Pair::from_reply(&make(here, &ann, "ann/hall").await);
    let mut agent = Agent::of(here, there, pair).await;
    let victim = agent.pair.clone();
    let own = Pair::from_reply(&make(there, &bob, "bob/hall").await);
    let mut bobs = Agent::of(there, here, own).await;
    let bobs_ticket = bobs.pair.sibling_ticket.clone();

    let tried = Cell::new(0);
    let count = || tried.set(tried.get() + 1);
    let refused = |what: &str, reply: &Reply| {
        count();
        assert!([401, 403, 404].contains(&reply.status), "{what}: {} {}", reply.status, reply.text());
        let code = reply.json()["code"].as_str().expect("a stable code").to_owned();
        assert!(["unauthorized", "forbidden", "not_found"].contains(&code.as_str()), "{what}: {code}");
    };
    let command =
        |method: &str, params: Value| json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    for node in [here, there] {
        // Another's pair: by the account's token, by the own pair's tickets, by the other side's ticket.
        for bearer in [&bob, &bob_shared, &bobs_ticket, &bobs.pair.client_ticket, &victim.client_ticket] {
            for (method, tail) in [("GET", ""), ("DELETE", ""), ("GET", "/events")] {
                let reply = node.ask(method, &victim.path(tail), bearer, None).await;
                refused(&format!("{method} {tail}"), &reply);
            }
            for (name, params) in [
                ("pair.get", json!({})),
                ("pair.ticket", json!({"side": "client"})),
                ("pair.end", json!({})),
                ("client.send", json!({"text": "as somebody else"})),
                ("client.push", json!({"text": "to somebody else"})),
                ("client.move", json!({"room": "bob/hall"})),
                ("client.close", json!({})),
                ("room.set", json!({"format": "binary"})),
                ("room.close", json!({})),
            ] {
                let reply = node.ask("POST", &victim.path("/commands"), bearer, Some(&command(name, params))).await;
                refused(name, &reply);
            }
            let reply = node.ask("POST", "/v1/revocations", bearer, Some(&json!({"pair": victim.id}))).await;
            refused("revoke", &reply);
        }
        // Another's rooms, by the account's token.
        for (bearer, room) in [(&bob, "ann/hall"), (&bob_shared, "shared/hall"), (&bob, "shared/hall")] {
            let path = room_path(room);
            for (method, tail, body) in [
                ("PUT", "", Some(json!({"format": "binary"}))),
                ("DELETE", "", None),
                ("GET", "/members", None),
                ("POST", "/messages", Some(json!({"a": 1}))),
            ] {
                // Whoever a room is for may read it and publish in it, whoever's it is.
                if bearer == &bob_shared && !tail.is_empty() {
                    continue;
                }
                let reply = node.ask(method, &format!("{path}{tail}"), bearer, body.as_ref()).await;
                refused(&format!("{method} {room}{tail}"), &reply);
            }
        }
        // Not even their names.
        let list = node.ask("GET", "/v1/rooms?limit=1", &bob, None).await.json();
        count();
        assert_eq!(list, json!({"rooms": [], "after": null}));
        refused("a pair in another's room", &make(node, &bob, "ann/hall").await);
        refused("more than the token has", &make(node, &token("bob", "bob/*", &["pair.*"]), "bob/hall").await);
        // Sockets of another's pair and room.
        for (path, bearer) in [
            (victim.path("/client"), &bobs.pair.client_ticket),
            (victim.path("/client"), &bob),
            (victim.path("/client"), &victim.sibling_ticket),
            (victim.path("/sibling"), &bobs_ticket),
            (victim.path("/sibling"), &bob),
            (victim.path("/sibling"), &victim.client_ticket),
            (format!("{}/client", room_path("ann/hall")), &bob),
        ] {
            let Err(Error::Http(answer)) = Dial::to(node, path.clone()).bearer(bearer).connect().await else {
                panic!("{path} was let in")
            };
            count();
            assert!([401, 403].contains(&answer.status().as_u16()), "{path}: {}", answer.status());
            let closed = Dial::to(node, path.clone()).bearer(bearer).in_a_browser().closed().await;
            count();
            assert!([Some(3501), Some(3503)].contains(&closed.code), "{path}: {closed:?}");
        }
    }
    // From bob's own sibling, which may do everything with what is his.
    for (name, params, code) in [
        ("client.move", json!({"room": "ann/hall"}), -32003),
        ("client.move", json!({"room": "shared/hall"}), -32003),
        ("room.kick", json!({"pair": victim.id}), -32004),
        ("pair.ticket", json!({"side": "sibling", "grants": ["room.set", "*"]}), 0),
    ] {
        let outcome = bobs.sibling.call(name, params.clone()).await;
        count();
        match outcome {
            Err(fault) => assert_eq!(fault.code, code, "{name} {params}: {fault:?}"),
            Ok(_) => assert_eq!(code, 0, "{name} {params} was done"),
        }
    }
    println!("{} attempts, all refused", tried.get());
    assert!(tried.get() > 180, "only {}", tried.get());

    // Nothing of it had an effect.
    agent.sibling.must("client.push", json!({"text": "still mine"})).await;
    assert_eq!(agent.pipe.next_text().await, "still mine");
    assert_eq!(agent.pipe.received(), 1);
    let room = here.ask("GET", &room_path("ann/hall"), ADMIN_KEY, None).await.json();
    assert_eq!((&room["meta"]["of"], &room["format"], &room["members"]), (&json!("ann"), &json!("text"), &json!(1)));
    let state = agent.sibling.must("pair.get", json!({})).await;
    assert_eq!((&state["room"], &state["epoch"], &state["client"]), (&json!("ann/hall"), &json!(1), &json!("live")));
    let told: Vec<_> = agent.sibling.story().iter().map(|params| params["type"].clone()).collect();
    assert!(told.is_empty() || told.iter().all(|kind| kind == "client.opened"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_never_carries_more_than_its_makers() {
    let cluster = Cluster::redis(2, &Settings::new().set("JWT_KEY", SECRET)).await;
    let few = token("ann", "ann/*", &["pair.get", "pair.ticket", "client.push"]);
    let reply =
        cluster.node(0).ask("POST", "/v1/pairs", &few, Some(&json!({"room": "ann/x", "format": "text"}))).await;
    let pair = Pair::from_reply(&reply);
    assert_eq!(pair.made["sibling"]["grants"], json!(["pair.get", "pair.ticket", "client.push"]));
    let mut agent = Agent::of(cluster.node(0), cluster.node(1), pair).await;
    for (method, params) in
        [("client.close", json!({})), ("room.get", json!({})), ("room.set", json!({})), ("pair.end", json!({}))]
    {
        let fault = agent.sibling.call(method, params).await.unwrap_err();
        assert_eq!((fault.code, fault.message.contains(method)), (-32003, true), "{fault:?}");
    }
    for grants in [json!(["client.*"]), json!(["*"]), json!(["room.set"])] {
        let fault =
            agent.sibling.call("pair.ticket", json!({"side": "sibling", "grants": grants})).await.unwrap_err();
        assert_eq!(fault.code, -32003, "{fault:?}");
    }
    // Who may not do what the client does may not be the client.
    let fault = agent.sibling.call("pair.ticket", json!({"side": "client"})).await.unwrap_err();
    assert_eq!((fault.code, fault.message.contains("client.*")), (-32003, true), "{fault:?}");
    // An observer beside it, on one and the same pair.
    let observer = agent.sibling.must("pair.ticket", json!({"side": "sibling", "grants": ["pair.get"]})).await;
    let observer =
        Pair { sibling_ticket: observer["ticket"].as_str().expect("a ticket").into(), ..agent.pair.clone() };
    let mut observer = support::Sibling::open(cluster.node(0), &observer).await;
    observer.must("pair.get", json!({})).await;
    let fault = observer.call("client.push", json!({"text": "no"})).await.unwrap_err();
    assert_eq!(fault.code, -32003);
    agent.sibling.must("client.push", json!({"text": "yes"})).await;
    assert_eq!(agent.pipe.next_text().await, "yes");
}
