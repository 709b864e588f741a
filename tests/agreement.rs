//! Client and room agree on a format: a table of rooms, clients and answers, for plain clients, for pages, and for
//! pairs made first; and what a room's specification says of subprotocols, sizes, senders and echoes.

mod support;

use serde_json::{Value, json};
use support::{ClientSocket, Cluster, Dial, Gateway, Kind, Pair, Settings, Sibling, room_path, specify};
use tokio_tungstenite::tungstenite::{Error, Message};

/// What a client is answered: the subprotocol that is chosen and the format that holds, or what is refused.
#[derive(Debug, PartialEq)]
enum Answer {
    Speaks(&'static str, Option<&'static str>),
    NoCommonFormat,
}
use Answer::{NoCommonFormat, Speaks};

/// Room's format; what is spoken there already; the client's `format=`; its subprotocols; the answer.
type Row = (Value, Option<&'static str>, Option<&'static str>, Option<&'static str>, Answer);

fn rows() -> Vec<Row> {
    let none = || json!(null);
    vec![
        // Without a specification the first member decides, and what says nothing takes what there is.
        (none(), None, Some("text"), None, Speaks("text", None)),
        (none(), None, None, Some("siblings.json"), Speaks("json", Some("siblings.json"))),
        (none(), None, Some("json,text"), None, Speaks("json", None)),
        (none(), None, None, None, Speaks("any", None)),
        (none(), Some("text"), None, None, Speaks("text", None)),
        (none(), Some("text"), Some("binary"), None, NoCommonFormat),
        (none(), Some("text"), Some("binary,text"), None, Speaks("text", None)),
        (none(), Some("text"), Some("any"), None, Speaks("text", None)),
        (none(), Some("json"), Some("text"), None, NoCommonFormat),
        (none(), Some("any"), Some("text"), None, NoCommonFormat),
        // A specification of one format.
        (json!("binary"), None, None, None, Speaks("binary", None)),
        (json!("binary"), None, Some("binary"), None, Speaks("binary", None)),
        (json!("binary"), None, Some("text"), None, NoCommonFormat),
        (json!("binary"), None, None, Some("siblings.text"), NoCommonFormat),
        (
            json!("binary"),
            None,
            None,
            Some("siblings.text,siblings.binary"),
            Speaks("binary", Some("siblings.binary")),
        ),
        // What the query says goes before the subprotocols.
        (json!("text"), None, Some("text"), Some("siblings.binary"), Speaks("text", Some("siblings.binary"))),
        (json!("any"), None, Some("any"), None, Speaks("any", None)),
        (json!("any"), None, Some("text"), None, NoCommonFormat),
        // A specification of several decides by its own order, and keeps to what is spoken.
        (json!(["binary", "text"]), None, None, None, Speaks("binary", None)),
        (json!(["binary", "text"]), None, Some("text,binary"), None, Speaks("binary", None)),
        (json!(["binary", "text"]), None, Some("text"), None, Speaks("text", None)),
        (json!(["binary", "text"]), Some("text"), Some("binary"), None, NoCommonFormat),
        (json!(["binary", "text"]), Some("text"), Some("binary,text"), None, Speaks("text", None)),
        (json!(["binary", "text"]), None, Some("json"), None, NoCommonFormat),
        // Subprotocols that nobody knows are no offer.
        (json!("text"), None, None, Some("mqtt, siblings.text"), Speaks("text", Some("siblings.text"))),
    ]
}

/// Runs the whole table on one kind of client.
async fn check_all(kind: Kind, ask: impl AsyncFn(&Gateway, &Row, &str) -> Answer) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    for (number, row) in rows().into_iter().enumerate() {
        let (spec, spoken, ..) = &row;
        let room = format!("agree/{number}");
        if !spec.is_null() {
            specify(cluster.node(1), &room, json!({"format": spec})).await;
        }
        let _first = match spoken {
            Some(format) => {
                let pair = Pair::make(cluster.node(1), &room, format).await;
                Some(ClientSocket::open_and_told(cluster.node(1), &pair).await)
            }
            None => None,
        };
        let answer = ask(cluster.node(0), &row, &room).await;
        assert_eq!(answer, row.4, "row {number}: {row:?}");
    }
}

fn dial(node: &Gateway, room: &str, (_, _, format, protocols, _): &Row) -> Dial {
    let mut dial = Dial::to(node, format!("{}/client", room_path(room)));
    if let Some(format) = format {
        dial = dial.query("format", format);
    }
    match protocols {
        Some(protocols) => dial.offer(protocols),
        None => dial,
    }
}

/// What a socket that was let in speaks, by what its sibling is told.
async fn spoken_by(node: &Gateway, headers: &http::HeaderMap) -> &'static str {
    let header = |name: &str| headers[name].to_str().expect("text").to_owned();
    let reply =
        node.ask("GET", &format!("/v1/pairs/{}", header("sibling-pair")), &header("sibling-ticket"), None).await;
    let state = reply.json();
    ["text", "json", "binary", "any"].into_iter().find(|format| state["format"] == *format).expect("a format")
}

fn chosen(headers: &http::HeaderMap) -> Option<&'static str> {
    let protocol = headers.get("sec-websocket-protocol")?.to_str().expect("text");
    ["siblings.text", "siblings.json", "siblings.binary", "mqtt"].into_iter().find(|known| protocol == *known)
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_clients_are_answered_by_the_status() {
    for kind in [Kind::Memory, Kind::Redis] {
        check_all(kind, async |node, row, room| match dial(node, room, row).connect().await {
            Ok((_ws, response)) => Speaks(spoken_by(node, response.headers()).await, chosen(response.headers())),
            Err(Error::Http(refusal)) => {
                assert_eq!(refusal.status(), 406);
                let problem: Value =
                    serde_json::from_slice(refusal.body().as_deref().expect("a body")).expect("json");
                assert_eq!(problem["code"], "no_common_format");
                let speaks = row.1.or(row.0.as_str()).unwrap_or("binary or text");
                let detail = problem["detail"].as_str().expect("a sentence");
                assert!(detail.contains(&format!("speaks {speaks}")), "{detail}");
                NoCommonFormat
            }
            Err(other) => panic!("{other}"),
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_answered_by_the_close_code() {
    check_all(Kind::Memory, async |node, row, room| {
        let (ws, response) = dial(node, room, row).in_a_browser().connect().await.expect("a page is let in");
        if response.headers().contains_key("sibling-pair") {
            return Speaks(spoken_by(node, response.headers()).await, chosen(response.headers()));
        }
        // Browsers fail a handshake that answers none of what they offered.
        assert_eq!(response.headers().contains_key("sec-websocket-protocol"), row.3.is_some());
        assert_eq!(ClientSocket::over(ws).closed().await.code, Some(3516));
        NoCommonFormat
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_are_answered_when_they_are_made() {
    check_all(Kind::Redis, async |node, (_, _, format, protocols, _), room| {
        let names: Vec<_> = match (format, protocols) {
            (Some(formats), _) => formats.split(',').collect(),
            (None, Some(protocols)) => {
                protocols.split(',').filter_map(|name| name.trim().strip_prefix("siblings.")).collect()
            }
            (None, None) => Vec::new(),
        };
        let body = if names.is_empty() { json!({"room": room}) } else { json!({"room": room, "format": names}) };
        let reply = node.send("POST", "/v1/pairs", &[], Some(&body)).await;
        if reply.status == 406 {
            assert_eq!(reply.json()["code"], "no_common_format");
            return NoCommonFormat;
        }
        let pair = Pair::from(node, body).await;
        let mut sibling = Sibling::open(node, &pair).await;
        let dial = match protocols {
            Some(protocols) => pair.dial_client(node).offer(protocols),
            None => pair.dial_client(node),
        };
        // The query stands in the body here, so that it must stand there too.
        let dial = if let Some(format) = format { dial.query("format", format) } else { dial };
        let (_ws, response) = dial.connect().await.expect("what was agreed holds");
        let opened = sibling.event("client.opened").await;
        let speaks = ["text", "json", "binary", "any"].into_iter().find(|f| opened["data"]["format"] == *f);
        Speaks(speaks.expect("a format"), chosen(response.headers()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_lists_the_subprotocols_of_its_clients() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    specify(cluster.node(0), "broker", json!({"format": "binary", "subprotocols": ["mqtt", "amqp"]})).await;
    for (offered, chosen) in [
        ("mqtt", Some("mqtt")),
        ("x, amqp, mqtt", Some("amqp")),
        ("siblings.binary, mqtt", Some("mqtt")),
        ("x, siblings.binary", Some("siblings.binary")),
        ("x", None),
    ] {
        let dial = Dial::to(cluster.node(1), "/v1/rooms/broker/client").offer(offered);
        // A client that is strict about it fails where none was chosen: what the gateway said is what counts here.
        let answered = match dial.connect().await {
            Ok((_ws, response)) => {
                response.headers().get("sec-websocket-protocol").map(|name| name.to_str().expect("text").to_owned())
            }
            Err(Error::Protocol(_)) => None,
            Err(other) => panic!("{offered}: {other}"),
        };
        assert_eq!(answered.as_deref(), chosen, "{offered}");
    }
}

/// A pipe into a room that needs no account, its sibling, and a peer.
async fn three(cluster: &Cluster, room: &str) -> (ClientSocket, Sibling, ClientSocket) {
    let pair = Pair::from(cluster.node(0), json!({"room": room})).await;
    let mut sibling = Sibling::open(cluster.node(1), &pair).await;
    let pipe = ClientSocket::open(cluster.node(0), &pair).await;
    sibling.event("client.opened").await;
    let peer = Pair::from(cluster.node(1), json!({"room": room})).await;
    (pipe, sibling, ClientSocket::open_and_told(cluster.node(1), &peer).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_room_does_not_take_is_dropped_or_closes() {
    let cluster = Cluster::redis(2, &Settings::new().set("VIOLATIONS", "close")).await;
    let spec = json!({"format": "text", "max_message_bytes": 10, "violations": "drop"});
    specify(cluster.node(0), "small", spec).await;
    let (mut pipe, mut sibling, mut peer) = three(&cluster, "small").await;
    pipe.text("12345678901").await;
    assert!(sibling.event("client.refused").await["data"]["reason"].as_str().expect("a phrase").contains("limit"));
    pipe.binary(vec![1]).await;
    assert!(sibling.event("client.refused").await["data"]["reason"].as_str().expect("a phrase").contains("kind"));
    pipe.text("1234567890").await;
    assert_eq!(peer.next_text().await, "1234567890", "the only one that fits");
    let fault = sibling.call("client.send", json!({"text": "12345678901"})).await.unwrap_err();
    assert_eq!(fault.code, -32013);

    for (room, spec, frame, code) in [
        ("strict/size", json!({"max_message_bytes": 3}), Message::text("1234"), 1009),
        ("strict/kind", json!({"format": "binary"}), Message::text("1"), 1003),
        ("strict/publish", json!({"publish": "granted"}), Message::text("1"), 3503),
    ] {
        specify(cluster.node(0), room, spec).await;
        let (mut pipe, mut sibling, peer) = three(&cluster, room).await;
        pipe.send(frame).await;
        assert_eq!(pipe.closed().await.code, Some(code), "{room}");
        sibling.event("client.refused").await;
        assert_eq!(sibling.event("client.closed").await["data"]["code"], code);
        assert_eq!(peer.received(), 0, "{room}: never delivered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_granted_publish_where_the_room_says_so() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let spec = json!({"format": "text", "publish": "granted", "violations": "drop"});
    specify(cluster.node(0), "stage", spec).await;
    let (mut pipe, mut sibling, mut peer) = three(&cluster, "stage").await;
    pipe.text("from the audience").await;
    sibling.event("client.refused").await;
    let fault = sibling.call("client.send", json!({"text": "from its sibling"})).await.unwrap_err();
    assert_eq!((fault.code, fault.message.contains("room.publish")), (-32003, true), "{fault:?}");
    sibling.must("client.push", json!({"text": "to itself"})).await;
    assert_eq!(pipe.next_text().await, "to itself");

    let singer = Pair::by_admin(cluster.node(1), json!({"room": "stage"})).await;
    let mut singer = ClientSocket::open_and_told(cluster.node(1), &singer).await;
    singer.text("from the stage").await;
    for member in [&mut pipe, &mut peer] {
        assert_eq!(member.next_text().await, "from the stage");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_room_sends_its_own_back() {
    for order in ["sender", "room"] {
        for kind in [Kind::Memory, Kind::Redis] {
            let cluster = Cluster::start(kind, &Settings::new()).await;
            specify(cluster.node(0), "cave", json!({"format": "text", "echo": true, "order": order})).await;
            let (mut pipe, _sibling, mut peer) = three(&cluster, "cave").await;
            pipe.text("ho").await;
            assert_eq!((pipe.next_text().await, peer.next_text().await), ("ho".into(), "ho".into()));
        }
    }
}
