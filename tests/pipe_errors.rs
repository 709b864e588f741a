//! What a client socket does wrong is never delivered, ends with its stated code, and is told to its sibling.

mod support;

use rstest::rstest;
use serde_json::json;
use support::{ClientSocket, Cluster, Gateway, Pair, RawSocket, Settings, Sibling, kind_of};
use tokio_tungstenite::tungstenite::Message;

/// A sender to misbehave, its sibling, and a witness in the same room.
async fn room(cluster: &Cluster, format: &str) -> (Pair, Sibling, ClientSocket) {
    let node = cluster.node(0);
    let witness = Pair::make(node, "hall", format).await;
    let witness = ClientSocket::open(node, &witness).await;
    let pair = Pair::make(node, "hall", format).await;
    let sibling = Sibling::open(node, &pair).await;
    (pair, sibling, witness)
}

/// Checks that the witness got nothing, by a frame that is sent after all that was wrong.
async fn got_nothing(node: &Gateway, witness: &mut ClientSocket, good: Message) {
    let honest = Pair::from(node, json!({"room": "hall"})).await;
    let mut honest = ClientSocket::open(node, &honest).await;
    honest.send(good.clone()).await;
    assert_eq!(witness.next().await, good, "what was wrong is never delivered");
}

#[rstest]
#[case::binary_into_text("text", Message::binary("x"), Message::text("ok"))]
#[case::binary_into_json("json", Message::binary("{}"), Message::text("{}"))]
#[case::text_into_binary("binary", Message::text("x"), Message::binary("ok"))]
#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_the_wrong_kind_closes_1003(#[case] format: &str, #[case] wrong: Message, #[case] right: Message) {
    let cluster = Cluster::memory(&Settings::new()).await;
    let (pair, mut sibling, mut witness) = room(&cluster, format).await;
    let mut pipe = ClientSocket::open(cluster.node(0), &pair).await;
    pipe.send(right.clone()).await;
    assert_eq!(witness.next().await, right);
    pipe.send(wrong).await;
    assert_eq!(pipe.closed().await.code, Some(1003));
    let refused = sibling.event("client.refused").await;
    assert_eq!(refused["data"]["frames"], 1, "{refused}");
    assert!(refused["data"]["reason"].is_string(), "{refused}");
    let closed = sibling.event("client.closed").await;
    assert_eq!(closed["data"]["code"], 1003, "{closed}");
    assert_eq!(closed["data"]["by"], "gateway", "{closed}");
    got_nothing(cluster.node(0), &mut witness, right).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_at_the_limit_passes_and_one_byte_more_closes_1009() {
    let cluster = Cluster::memory(&Settings::new().set("MAX_MESSAGE_BYTES", 10_000)).await;
    let (pair, mut sibling, mut witness) = room(&cluster, "binary").await;
    let mut pipe = ClientSocket::open(cluster.node(0), &pair).await;
    pipe.binary(vec![1; 10_000]).await;
    assert_eq!(witness.next().await.len(), 10_000);
    pipe.binary(vec![2; 10_001]).await;
    assert_eq!(pipe.closed().await.code, Some(1009));
    let refused = sibling.event("client.refused").await;
    assert_eq!(refused["data"]["frames"], 1, "{refused}");
    assert_eq!(sibling.event("client.closed").await["data"]["code"], 1009);
    got_nothing(cluster.node(0), &mut witness, Message::binary("ok")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_are_one_frame_with_its_opcode() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let (pair, mut sibling, mut witness) = room(&cluster, "any").await;
    let node = cluster.node(0);
    let mut pipe = RawSocket::upgrade(node, &pair.path("/client"), &pair.client_ticket, None).await;
    let frames = [
        RawSocket::masked(0x01, "h\u{e9}".as_bytes()),
        // A ping between fragments, and a character that is cut in two.
        RawSocket::masked(0x89, b"ping"),
        RawSocket::masked(0x00, &[0xc3]),
        RawSocket::masked(0x80, &[0xbc, b'!']),
        RawSocket::masked(0x02, b"bin"),
        RawSocket::masked(0x80, b"ary"),
        RawSocket::masked(0x81, b""),
        RawSocket::masked(0x82, b""),
    ];
    pipe.write(&frames.concat()).await;
    assert_eq!(witness.next().await, Message::text("hé\u{fc}!"));
    assert_eq!(witness.next().await, Message::binary("binary"));
    assert_eq!(witness.next().await, Message::text(""), "empty frames are frames");
    assert_eq!(witness.next().await, Message::binary(""));
    assert_eq!(pipe.frame().await, Some((10, b"ping".to_vec())), "the pong echoes its ping");
    let state = sibling.must("pair.get", json!({})).await;
    assert_eq!(support::counter(&state, "frames_in"), 4, "{state}");
}

fn protocol_errors() -> Vec<(&'static str, Vec<u8>, &'static [u16])> {
    let masked = RawSocket::masked;
    let close = |code: u16| masked(0x88, &code.to_be_bytes());
    vec![
        ("an unmasked frame", vec![0x81, 1, b'x'], &[1002]),
        ("RSV1 without an extension", masked(0xc1, b"x"), &[1002]),
        ("RSV2", masked(0xa1, b"x"), &[1002]),
        ("RSV3", masked(0x91, b"x"), &[1002]),
        ("reserved opcode 3", masked(0x83, b"x"), &[1002]),
        ("reserved opcode 7", masked(0x87, b"x"), &[1002]),
        ("reserved opcode 11", masked(0x8b, b"x"), &[1002]),
        ("a fragmented ping", masked(0x09, b"x"), &[1002]),
        ("a ping of 126 bytes", masked(0x89, &[0; 126]), &[1002]),
        ("a continuation of nothing", masked(0x80, b"x"), &[1002]),
        ("a new message within a fragmented one", [masked(0x01, b"x"), masked(0x81, b"y")].concat(), &[1002]),
        ("a close of one byte", masked(0x88, &[3]), &[1002]),
        ("close code 999", close(999), &[1002]),
        ("close code 1004", close(1004), &[1002]),
        ("close code 1005", close(1005), &[1002]),
        ("close code 1006", close(1006), &[1002]),
        ("close code 1016", close(1016), &[1002]),
        ("close code 2999", close(2999), &[1002]),
        ("close code 5000", close(5000), &[1002]),
        ("a close reason that is no UTF-8", masked(0x88, &[0x03, 0xe8, 0xff]), &[1007, 1002]),
        ("text that is no UTF-8", masked(0x81, &[0xc0, 0x80]), &[1007]),
        ("text that ends within a character", masked(0x81, &[0xe2, 0x82]), &[1007]),
        ("text with a surrogate", masked(0x81, &[0xed, 0xa0, 0x80]), &[1007]),
        ("a length of 2^63", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[1009, 1002]),
        ("a length of 2^62", vec![0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[1009]),
        (
            "fragments beyond the limit",
            [masked(0x02, &vec![0; 60_000]), masked(0x00, &vec![0; 60_000]).repeat(20)].concat(),
            &[1009],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_close_with_their_code_and_are_never_relayed() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let (pair, mut sibling, mut witness) = room(&cluster, "any").await;
    for (case, bytes, codes) in protocol_errors() {
        let mut pipe = RawSocket::upgrade(node, &pair.path("/client"), &pair.client_ticket, None).await;
        pipe.write(&bytes).await;
        let code = pipe.close_code().await;
        assert!(code.is_some_and(|code| codes.contains(&code)), "{case}: {code:?}");
        let closed = sibling.event("client.closed").await;
        assert_eq!(closed["data"]["code"].as_u64(), code.map(u64::from), "{case}: {closed}");
    }
    got_nothing(node, &mut witness, Message::text("ok")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_end_a_sibling_socket_and_leave_its_pipe() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let (pair, mut sibling, mut witness) = room(&cluster, "any").await;
    let mut pipe = ClientSocket::open(node, &pair).await;
    for (case, bytes, codes) in protocol_errors() {
        let (path, ticket) = (pair.path("/sibling"), &pair.sibling_ticket);
        let mut broken = RawSocket::upgrade(node, &path, ticket, Some("siblings.v1.json")).await;
        broken.write(&bytes).await;
        let code = broken.close_code().await;
        // A binary message on a JSON sibling may be refused for its kind before its size.
        let fits = code.is_some_and(|code| codes.contains(&code));
        assert!(fits || code == Some(1003) && bytes[0] & 0x0f == 2, "{case}: {code:?}");
    }
    pipe.text("still here").await;
    assert_eq!(witness.next_text().await, "still here");
    sibling.must("client.ping", json!({})).await;
    let kinds: Vec<_> = sibling.story().iter().map(|params| kind_of(params).to_owned()).collect();
    assert_eq!(kinds, ["client.opened"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_client_socket_takes_over() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let mut sibling = Sibling::open(cluster.node(0), &pair).await;
    let mut older = ClientSocket::open(cluster.node(0), &pair).await;
    sibling.event("client.opened").await;
    // On the same node, on the other one, and back.
    for (round, node) in [0, 1, 1, 0].into_iter().enumerate() {
        let newer = ClientSocket::open(cluster.node(node), &pair).await;
        assert_eq!(older.closed().await.code, Some(3509), "round {round}");
        let closed = sibling.event("client.closed").await;
        assert_eq!(closed["data"]["code"], 3509, "{closed}");
        assert_eq!(closed["data"]["epoch"], round + 1, "{closed}");
        let opened = sibling.event("client.opened").await;
        assert_eq!(opened["data"]["epoch"], round + 2, "{opened}");
        older = newer;
    }
    sibling.must("client.push", json!({"text": "to the newest"})).await;
    assert_eq!(older.next_text().await, "to the newest");
    let members = sibling.must("room.members", json!({})).await;
    assert_eq!(members["members"].as_array().map(Vec::len), Some(1), "{members}");
}
