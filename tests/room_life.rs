//! What happens in a room whose specification changes while clients are in it, on every node at once; and what its
//! owner does with its members.

mod support;

use std::collections::HashMap;

use serde_json::{Value, json};
use support::{
    ADMIN_KEY, Agent, ClientSocket, Cluster, Dial, Kind, Pair, Settings, Sibling, eventually, of_room, room_path,
    specify,
};
use tokio_tungstenite::tungstenite::{Error, Message};

fn admins(room: &str) -> Value {
    json!({"room": room, "format": "binary", "grants": ["*"]})
}

/// An internal client, whose sibling may do everything with its room.
async fn owner(cluster: &Cluster, room: &str) -> Agent {
    let pair = Pair::by_admin(cluster.node(2), admins(room)).await;
    Agent::of(cluster.node(2), cluster.node(0), pair).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_pipe_lives_under_what_an_internal_client_says() {
    for kind in [Kind::Memory, Kind::Redis] {
        let cluster = Cluster::start(kind, &Settings::new().set("DEFAULT_PUBLIC", "off")).await;
        let stranger = Dial::to(cluster.node(1), "/v1/rooms/cams%2F1/client?format=binary");
        let refused = stranger.clone().connect().await.expect_err("not public yet");
        assert!(matches!(refused, Error::Http(refusal) if refusal.status() == 401));

        let mut owner = owner(&cluster, "cams/1").await;
        let spec = json!({"format": "binary", "public": true, "max_message_bytes": 1_000, "violations": "drop"});
        let told = owner.sibling.must("room.set", spec.clone()).await;
        assert_eq!((&told["format"], &told["max_message_bytes"]), (&json!("binary"), &json!(1_000)));
        let heard = owner.sibling.event("room.changed").await;
        assert_eq!(heard["data"]["specification"]["public"], true);
        assert!(heard["cause"]["sibling"].is_string(), "its own command: {heard}");

        // Anonymous, from another node, with its own sibling by the headers that it is answered.
        let (ws, response) = stranger.connect().await.expect("public now");
        let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
        let (mut pipe, pair) = (ClientSocket::over(ws), header("sibling-pair"));
        let dial = Dial::to(cluster.node(2), format!("/v1/pairs/{pair}/sibling")).bearer(&header("sibling-ticket"));
        let mut sibling = Sibling::over(support::Codec::Json, dial).await;
        pipe.binary(vec![7; 1_000]).await;
        assert_eq!(owner.pipe.next().await, Message::binary(vec![7; 1_000]));

        // Changed live, from the owner's sibling on another node, while it streams.
        let mut smaller = spec.clone();
        smaller["max_message_bytes"] = json!(10);
        owner.sibling.must("room.set", smaller).await;
        let heard = sibling.event("room.changed").await;
        assert_eq!(
            (&heard["data"]["fits"], &heard["data"]["specification"]["max_message_bytes"]),
            (&json!(true), &json!(10))
        );
        pipe.binary(vec![8; 11]).await;
        sibling.event("client.refused").await;
        pipe.binary(vec![9; 10]).await;
        assert_eq!(owner.pipe.next().await, Message::binary(vec![9; 10]), "the larger one was never delivered");

        // Not public any more: the anonymous one is told, and closed; the internal client stays.
        owner.sibling.must("room.set", json!({"format": "binary"})).await;
        let heard = sibling.event("room.changed").await;
        assert_eq!(heard["data"]["fits"], false);
        let closed = sibling.event("client.closed").await;
        assert_eq!((&closed["data"]["code"], &closed["data"]["by"]), (&json!(3503), &json!("room")));
        assert_eq!(pipe.closed().await.code, Some(3503));
        assert!(owner.pipe.is_open());
        // What the room is now is none of its business.
        assert_eq!(heard["data"]["specification"], json!({"room": "cams/1"}));
        for method in ["room.get", "room.members"] {
            assert_eq!(sibling.call(method, json!({})).await.unwrap_err().code, -32001, "{method}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_no_longer_fits_is_told_and_closed_by_what_it_can_speak() {
    let cluster = Cluster::redis(3, &Settings::new()).await;
    let room = "hall";
    specify(cluster.node(0), room, json!({"format": ["text", "binary"]})).await;
    let mut agents = Vec::new();
    for (i, (format, code)) in
        [(json!(["text"]), 3516), (json!(null), 3307), (json!(["text", "binary"]), 3307), (json!(["text"]), 3516)]
            .into_iter()
            .enumerate()
    {
        let body = if format.is_null() { json!({"room": room}) } else { json!({"room": room, "format": format}) };
        agents.push((Agent::enter(cluster.node(i), cluster.node(i + 1), body).await, code));
    }
    // What it spoke is still among what it speaks: nothing happens to anybody.
    specify(cluster.node(1), room, json!({"format": ["binary", "text"]})).await;
    for (agent, _) in &mut agents {
        assert_eq!(agent.sibling.event("room.changed").await["data"]["fits"], true);
        assert!(agent.pipe.is_open());
    }
    specify(cluster.node(1), room, json!({"format": "binary"})).await;
    for (agent, code) in &mut agents {
        assert_eq!(agent.sibling.event("room.changed").await["data"]["fits"], false);
        let closed = agent.sibling.event("client.closed").await;
        assert_eq!((&closed["data"]["code"], &closed["data"]["by"]), (&json!(code), &json!("room")));
        assert_eq!(agent.pipe.closed().await.code, Some(*code));
    }
    // Who is to come back can, with the ticket that it has.
    let (agent, _) = &agents[1];
    let mut pipe = ClientSocket::open(cluster.node(0), &agent.pair).await;
    let other = Pair::make(cluster.node(2), room, "binary").await;
    let mut other = ClientSocket::open_and_told(cluster.node(2), &other).await;
    other.binary(vec![1]).await;
    assert_eq!(pipe.next().await, Message::binary(vec![1]));
    let (agent, _) = &agents[0];
    let refused = agent.pair.dial_client(cluster.node(0)).connect().await.expect_err("it only speaks text");
    assert!(matches!(refused, Error::Http(refusal) if refusal.status() == 406));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_stays_that_came_in_while_the_format_changed() {
    let cluster = Cluster::redis(3, &Settings::new()).await;
    for round in 0..12 {
        let room = format!("race/{round}");
        specify(cluster.node(0), &room, json!({"format": "text"})).await;
        let path = format!("{}/client?format=text", room_path(&room));
        let rush = (0..20).map(|i| Dial::to(cluster.node(i), path.clone()).connect());
        let (rush, _) = tokio::join!(futures_util::future::join_all(rush), async {
            tokio::time::sleep(std::time::Duration::from_millis(2 * round)).await;
            specify(cluster.node(1), &room, json!({"format": "binary"})).await
        });
        for (ws, _) in rush.into_iter().flatten() {
            assert_eq!(ClientSocket::over(ws).closed().await.code, Some(3516), "{room}");
        }
        let late = Dial::to(cluster.node(2), format!("{}/client?format=binary", room_path(&room)));
        assert!(late.connect().await.is_ok(), "{room} speaks binary");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_holds_for_whoever_speaks_as_the_client() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    specify(cluster.node(0), "slow", json!({"format": "text", "rate": {"messages_per_second": 5}})).await;
    let mut agent = Agent::enter(cluster.node(0), cluster.node(1), json!({"room": "slow"})).await;
    let mut refused = 0;
    for _ in 0..30 {
        match agent.sibling.call("client.send", json!({"text": "x"})).await {
            Ok(_) => {}
            Err(fault) => {
                assert_eq!(fault.code, -32029, "{fault:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 15, "{refused} of 30");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_with_one_order_has_it_on_every_node() {
    for kind in [Kind::Memory, Kind::Redis] {
        let cluster = Cluster::start(kind, &Settings::new()).await;
        specify(cluster.node(0), "ledger", json!({"format": "text", "order": "room"})).await;
        let mut members = Vec::new();
        for i in 0..6 {
            let pair = Pair::from(cluster.node(i), json!({"room": "ledger"})).await;
            members.push(ClientSocket::open_and_told(cluster.node(i), &pair).await);
        }
        const EACH: usize = 300;
        let senders = 3;
        // Three senders at once, one on each node; three who only listen.
        let sends = members[..senders].iter_mut().enumerate().map(|(i, sender)| async move {
            for n in 0..EACH {
                sender.text(format!("{i}/{n}")).await;
            }
        });
        futures_util::future::join_all(sends).await;
        for (i, member) in members.iter_mut().enumerate() {
            let mine = if i < senders { EACH } else { 0 };
            member.until_received(senders * EACH - mine).await;
        }
        let all = members[senders].texts();
        for (i, member) in members.iter().enumerate() {
            let own = format!("{i}/");
            let expected: Vec<_> = all.iter().filter(|text| !text.starts_with(&own)).cloned().collect();
            assert_eq!(member.texts(), expected, "member {i} over {kind:?}: one order, without its own");
        }
        let mut last = HashMap::new();
        for text in &all {
            let (sender, number) = text.split_once('/').expect("as it was sent");
            let number: usize = number.parse().expect("a number");
            assert_eq!(last.insert(sender.to_owned(), number), number.checked_sub(1), "{text}");
        }

        // Back to an order of each sender's own: whoever is in comes back, so that nothing is overtaken.
        specify(cluster.node(0), "ledger", json!({"format": "text"})).await;
        for member in &mut members {
            assert_eq!(member.closed().await.code, Some(3307));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_room_takes_nobody_until_somebody_leaves() {
    let cluster = Cluster::redis(3, &Settings::new()).await;
    specify(cluster.node(0), "lift", json!({"format": "text", "capacity": 3})).await;
    let path = format!("{}/client", room_path("lift"));
    let rush = (0..9).map(|i| Dial::to(cluster.node(i), path.clone()).connect());
    let mut inside = Vec::new();
    for outcome in futures_util::future::join_all(rush).await {
        match outcome {
            Ok((ws, _)) => inside.push(ClientSocket::over(ws)),
            Err(Error::Http(refusal)) => {
                assert_eq!(refusal.status(), 503);
                assert!(refusal.headers().contains_key("retry-after"));
                let problem: Value =
                    serde_json::from_slice(refusal.body().as_deref().expect("a body")).expect("json");
                assert_eq!(problem["code"], "room_full");
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(inside.len(), 3);
    assert_eq!(Dial::to(cluster.node(1), path.clone()).in_a_browser().closed().await.code, Some(1013));

    let outside = Pair::make(cluster.node(1), "stairs", "text").await;
    let mut outside = Agent::of(cluster.node(1), cluster.node(2), outside).await;
    let fault = outside.sibling.call("client.move", json!({"room": "lift"})).await.unwrap_err();
    assert_eq!((fault.code, &fault.data["code"]), (-32056, &json!("room_full")));
    inside.pop().expect("three").close(1000, "").await;
    let moved =
        eventually("there is room", async || outside.sibling.call("client.move", json!({"room": "lift"})).await.ok())
            .await;
    assert_eq!(moved["to"], "lift");
    // A take-over of somebody's own place needs none.
    let _second = ClientSocket::open(cluster.node(0), &outside.pair).await;
    assert_eq!(outside.pipe.closed().await.code, Some(3509));
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_send_members_away_and_close_rooms() {
    for kind in [Kind::Memory, Kind::Redis] {
        let cluster = Cluster::start(kind, &Settings::new()).await;
        let mut owner = owner(&cluster, "club").await;
        let mut guests = Vec::new();
        for i in 0..4 {
            guests.push(Agent::enter(cluster.node(i), cluster.node(i + 1), json!({"room": "club"})).await);
        }
        let elsewhere = Agent::enter(cluster.node(0), cluster.node(1), json!({"room": "pub"})).await;
        let fault = owner.sibling.call("room.kick", json!({"pair": elsewhere.pair.id})).await.unwrap_err();
        assert_eq!(fault.code, -32004, "another room's: {fault:?}");

        let (first, second) = (guests[0].pair.id.clone(), guests[1].pair.id.clone());
        owner.sibling.must("room.kick", json!({"pair": first})).await;
        assert_eq!(guests[0].pipe.closed().await.code, Some(3503));
        let kick = json!({"pair": second, "code": 4001, "reason": "closing time", "key": "kick 1"});
        let reply = owner.sibling.must("room.kick", kick.clone()).await;
        let closed = guests[1].pipe.closed().await;
        assert_eq!((closed.code, closed.reason.as_str()), (Some(4001), "closing time"));
        let told = guests[1].sibling.event("client.closed").await;
        assert_eq!((&told["data"]["by"], &told["cause"]["key"]), (&json!("room"), &json!("kick 1")));
        // Back again, and the same key does not send it away twice.
        let back = ClientSocket::open(cluster.node(1), &guests[1].pair).await;
        assert_eq!(owner.sibling.must("room.kick", kick).await, reply);
        assert!(back.is_open());

        // A guest's sibling may not; by its grants.
        let fault = guests[2].sibling.call("room.close", json!({})).await.unwrap_err();
        assert_eq!(fault.code, -32003);
        let told = owner.sibling.must("room.close", json!({"reason": "fire"})).await;
        assert_eq!(told["closed"], 4, "two guests, one that came back, and the owner itself");
        for guest in &mut guests[2..] {
            assert_eq!(guest.sibling.event("room.closed").await["data"]["reason"], "fire");
            let closed = guest.pipe.closed().await;
            assert_eq!((closed.code, closed.reason.as_str()), (Some(3511), "fire"));
            assert!(
                guest.sibling.event("client.closed").await["cause"]["sibling"].is_string(),
                "its owner's command"
            );
        }
        assert_eq!(owner.pipe.closed().await.code, Some(3511));
        assert!(elsewhere.pipe.is_open());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_not_heard_is_found() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    specify(cluster.node(0), "deaf", json!({"format": "text"})).await;
    let mut agent = Agent::enter(cluster.node(1), cluster.node(0), json!({"room": "deaf"})).await;
    let redis = cluster.redis.as_ref().expect("a cluster over redis");
    // The rule is laid down as a node would, but nobody is told of it.
    let key = redis.cli(&["--scan", "--pattern", "*deaf*rule"]).trim().to_owned();
    specify(cluster.node(0), "other", json!({"format": "text", "max_message_bytes": 5, "violations": "drop"})).await;
    let other = key.replace("deaf", "other");
    redis.cli(&["COPY", &other, &key, "REPLACE"]);
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let heard = agent.sibling.event("room.changed").await;
    assert_eq!(heard["data"]["specification"]["max_message_bytes"], 5);
    agent.pipe.text("too long").await;
    agent.sibling.event("client.refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_a_specification_is_told_it_again() {
    let mut cluster = Cluster::redis(2, &Settings::new().set("DEFAULT_PUBLIC", "off")).await;
    let spec = json!({"format": "text", "max_message_bytes": 50, "violations": "drop"});
    specify(cluster.node(0), "square", spec).await;
    let mut agents = Vec::new();
    for i in 0..4 {
        agents.push(Agent::enter(cluster.node(i), cluster.node(i + 1), json!({"room": "square"})).await);
    }
    let redis = cluster.redis.as_mut().expect("a cluster over redis");
    redis.kill();
    redis.restart().await;
    let known = async |cluster: &Cluster| {
        let reply = cluster.node(1).get("/v1/rooms/square").await;
        (reply.status == 200 && reply.json()["max_message_bytes"] == 50 && reply.json()["members"] == 4).then_some(())
    };
    eventually("the specification is known again", async || known(&cluster).await).await;
    let [first, rest @ ..] = &mut agents[..] else { panic!("four") };
    eventually("frames pass", async || {
        first.pipe.text("still here").await;
        rest.iter().all(|agent| agent.pipe.received() > 0).then_some(())
    })
    .await;
    for agent in &agents {
        assert!(agent.pipe.is_open());
        assert!(agent.sibling.story().iter().all(|params| params["type"] != "room.changed"));
    }
    // Whoever comes in is refused for good by nobody.
    let newcomer = Agent::enter(cluster.node(1), cluster.node(0), json!({"room": "square"})).await;
    assert!(newcomer.pipe.is_open());

    // Taken back, and not heard of: that is believed.
    let redis = cluster.redis.as_ref().expect("a cluster over redis");
    let key = redis.cli(&["--scan", "--pattern", "*square*rule"]).trim().to_owned();
    assert_eq!(redis.cli(&["DEL", &key]).trim(), "1");
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    for agent in &mut agents {
        assert_eq!(agent.pipe.closed().await.code, Some(3503));
        assert_eq!(agent.sibling.event("room.changed").await["data"]["fits"], false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_specifies_rooms_by_name_and_pattern() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = r#"
        [rooms."cams/*"]
        format = "binary"
        public = true
        [rooms."cams/door"]
        format = "text"
        [rooms."*/quiet"]
        public = true
        rate = { messages_per_second = 5 }
    "#;
    std::fs::write(file.path(), text).expect("written");
    let settings = Settings::new().set("DEFAULT_PUBLIC", "off").set("CONFIG", file.path().display());
    let cluster = Cluster::memory(&settings).await;
    let node = cluster.node(0);
    for (room, status, format) in [
        ("cams/1", 201, json!("binary")),
        // Both go for it: the longer pattern says it more exactly.
        ("cams/a/quiet", 201, json!("any")),
        ("cams/door", 401, json!(null)),
        ("hall/quiet", 201, json!("any")),
        ("hall", 401, json!(null)),
    ] {
        let reply = node.send("POST", "/v1/pairs", &[], Some(&json!({"room": room}))).await;
        assert_eq!((reply.status, &reply.json()["format"]), (status, &format), "{room}: {}", reply.text());
    }
    // What is set by others goes before it, and what is removed brings it back.
    specify(node, "cams/1", json!({"format": "json"})).await;
    assert_eq!(node.get("/v1/rooms/cams%2F1").await.json()["format"], "json");
    assert_eq!(of_room(node, "DELETE", "cams/1", "").await.status, 204);
    assert_eq!(node.get("/v1/rooms/cams%2F1").await.json()["format"], "binary");
    assert_eq!(of_room(node, "DELETE", "cams/1", "").await.problem(404), "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_read_listed_and_published_in_over_http() {
    for kind in [Kind::Memory, Kind::Redis] {
        let cluster = Cluster::start(kind, &Settings::new()).await;
        let node = cluster.node(0);
        for i in 0..25 {
            specify(cluster.node(i), &format!("list/{i:02}"), json!({"meta": {"n": i}})).await;
        }
        let (mut names, mut path) = (Vec::new(), "/v1/rooms?limit=10".to_owned());
        loop {
            let page = node.ask("GET", &path, ADMIN_KEY, None).await.json();
            let rooms = page["rooms"].as_array().expect("a list");
            names.extend(rooms.iter().map(|room| room["room"].as_str().expect("a name").to_owned()));
            let Some(after) = page["after"].as_str() else { break };
            path = format!("/v1/rooms?limit=10&after={}", after.replace('/', "%2F"));
        }
        assert_eq!(names, (0..25).map(|i| format!("list/{i:02}")).collect::<Vec<_>>());
        assert_eq!(node.get("/v1/rooms").await.problem(401), "unauthorized");
        assert_eq!(of_room(node, "GET", "nowhere", "").await.problem(404), "not_found");
        for odd in ["%FF", "a%20b", "..", "%00", "%C3%A9"] {
            assert_eq!(of_room(node, "GET", odd, "").await.problem(404), "not_found", "{odd}");
        }

        for (body, code, names) in [
            (json!({"formt": "text"}), "unknown_field", "formt"),
            (json!({"format": "mp3"}), "invalid_params", "format"),
            (json!({"capacity": "many"}), "invalid_params", "capacity"),
            (json!({"history": {"messages": 5_000_000, "seconds": 60}}), "invalid_params", "history"),
            (json!({"rate": {"messages_per_second": -1}}), "invalid_params", "rate"),
            (json!([]), "invalid_params", "object"),
        ] {
            let reply = node.ask("PUT", "/v1/rooms/bad", ADMIN_KEY, Some(&body)).await;
            assert_eq!(reply.problem(400), code, "{body}");
            assert!(reply.json()["detail"].as_str().expect("a sentence").contains(names), "{}", reply.text());
        }

        specify(node, "news", json!({"format": "text", "max_message_bytes": 100})).await;
        let mut agent = Agent::enter(cluster.node(1), cluster.node(2), json!({"room": "news"})).await;
        let post = async |kind: &str, body: &[u8]| {
            let head = format!(
                "POST /v1/rooms/news/messages HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\
                 Content-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                node.addr,
                body.len()
            );
            support::exchange(node.addr, &[head.as_bytes(), body].concat()).await
        };
        let reply = post("application/json; charset=utf-8", br#"{"a": 1}"#).await;
        assert_eq!((reply.status, &reply.json()["members"]), (200, &json!(1)), "{}", reply.text());
        assert_eq!(agent.pipe.next_text().await, r#"{"a": 1}"#);
        assert_eq!(post("application/octet-stream", b"x").await.problem(406), "no_common_format");
        assert_eq!(post("text/plain", &[0xff]).await.problem(400), "invalid_params");
        assert_eq!(post("text/plain", &[b'x'; 101]).await.problem(413), "too_large");
        assert_eq!(agent.pipe.received(), 1);

        let members = node.get("/v1/rooms/news/members").await.json();
        assert_eq!(members["members"][0]["pair"], agent.pair.id, "a public room is read freely: {members}");
        specify(node, "news", json!({"format": "text", "public": false})).await;
        assert_eq!(node.get("/v1/rooms/news/members").await.problem(401), "unauthorized");
        agent.pipe.closed().await;
    }
}
