//! Every malformed message on a sibling socket gets its stated answer, and the socket lives on.
//!
//! What happens on client sockets is in `pipe_errors`, what happens before a socket is in `refusals`.

mod support;

use rstest::rstest;
use serde_json::{Value, json};
use support::{ADMIN_KEY, Arrival, ClientSocket, Cluster, Codec, Fault, Pair, Settings, Sibling};
use tokio_tungstenite::tungstenite::Message;

const PARSE: i64 = -32700;
const INVALID: i64 = -32600;
const UNKNOWN: i64 = -32601;
const PARAMS: i64 = -32602;

/// A pair with an open client, and a sibling of it.
async fn attached(cluster: &Cluster, codec: Codec) -> (Pair, ClientSocket, Sibling) {
    let pair = Pair::make(cluster.node(0), "hall", "text").await;
    let pipe = ClientSocket::open_and_told(cluster.node(0), &pair).await;
    let sibling = Sibling::open_in(codec, cluster.node(0), &pair).await;
    (pair, pipe, sibling)
}

/// The next reply, events passed over.
async fn next_reply(sibling: &mut Sibling) -> Value {
    loop {
        if let Arrival::Reply(reply) = sibling.next().await {
            return reply;
        }
    }
}

/// Checks one error: its code, and the fields that every error of ours carries.
#[track_caller]
fn check_fault(case: &str, reply: &Value, codes: &[i64]) -> Fault {
    let fault = Fault::split(reply).expect_err(case);
    assert!(codes.contains(&fault.code), "{case}: {reply}");
    assert!(!fault.message.is_empty(), "{case}: {reply}");
    for field in ["code", "doc", "trace_id"] {
        assert!(fault.data[field].is_string(), "{case}: data.{field} in {reply}");
    }
    assert!(fault.data["retryable"].is_boolean(), "{case}: {reply}");
    fault
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_cannot_be_read_is_answered_and_survived() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let (_, _pipe, mut sibling) = attached(&cluster, Codec::Json).await;
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"client.set","params":{{"meta":{}1{}}}}}"#,
        r#"{"a":"#.repeat(60),
        "}".repeat(60)
    );
    let table = [
        ("", &[PARSE][..]),
        ("{", &[PARSE]),
        ("nul", &[PARSE]),
        (r#"{"jsonrpc":"2.0","id":1,"method":"pair.get"} x"#, &[PARSE]),
        (r#"{"jsonrpc":"2.0","id":1,"method":"pair.get"}{}"#, &[PARSE]),
        ("{'jsonrpc':'2.0'}", &[PARSE]),
        ("[", &[PARSE]),
        ("[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pair.get\"},", &[PARSE]),
        ("[]", &[INVALID]),
        ("{}", &[INVALID]),
        ("1", &[INVALID]),
        ("null", &[INVALID]),
        (r#""pair.get""#, &[INVALID]),
        // Not readable as one meaning, so not read at all.
        (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"pair.get"}"#, &[INVALID, PARSE]),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"client.close","params":{"code":4000,"code":4001}}"#,
            &[INVALID, PARSE, PARAMS],
        ),
        (&deep, &[INVALID, PARSE, PARAMS]),
    ];
    for (message, codes) in table {
        sibling.send(Message::text(message)).await;
        let reply = next_reply(&mut sibling).await;
        check_fault(message, &reply, codes);
        if codes == [PARSE] {
            assert_eq!(reply.get("id"), Some(&Value::Null), "{message}: {reply}");
        }
        sibling.must("pair.get", json!({})).await;
        next_reply(&mut sibling).await;
    }
    assert!(sibling.story().is_empty(), "nothing took effect: {:#?}", sibling.story());
}

#[rstest]
#[case::json(Codec::Json)]
#[case::message_pack(Codec::MessagePack)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_good_request_gets_the_same_answer_in_both_codecs(#[case] codec: Codec) {
    let cluster = Cluster::memory(&Settings::new()).await;
    let (_, _pipe, mut sibling) = attached(&cluster, codec).await;
    let call = |method: &str, params: Value| json!({"jsonrpc": "2.0", "id": "q", "method": method, "params": params});
    // (message, codes that fit, a word that the message must name)
    let table = [
        (json!({"jsonrpc": "1.0", "id": "q", "method": "pair.get"}), &[INVALID][..], ""),
        (json!({"id": "q", "method": "pair.get"}), &[INVALID], "jsonrpc"),
        (json!({"jsonrpc": "2.0", "id": "q"}), &[INVALID], "method"),
        (json!({"jsonrpc": "2.0", "id": "q", "method": 5}), &[INVALID], "method"),
        (json!({"jsonrpc": "2.0", "id": "q", "method": "pair.get", "extra": 1}), &[INVALID], "extra"),
        (json!(["2.0", "q", "pair.get"]), &[INVALID], ""),
        (call("pair.get", json!("x")), &[INVALID, PARAMS], "params"),
        (call("pair.get", json!(7)), &[INVALID, PARAMS], "params"),
        (call("pair.get", json!([{}, {}])), &[PARAMS], ""),
        (call("pair.get", json!([7])), &[PARAMS], ""),
        (call("no.such.method", json!({})), &[UNKNOWN], "no.such.method"),
        (call("", json!({})), &[UNKNOWN, INVALID], ""),
        (call("Pair.Get", json!({})), &[UNKNOWN], ""),
        (call("pair.get\u{0}", json!({})), &[UNKNOWN], ""),
        (call("pair.get", json!({"nonsense": 1})), &[PARAMS], "nonsense"),
        (call("client.push", json!({"__proto__": {}, "text": "x"})), &[PARAMS], "__proto__"),
        (call("client.push", json!({})), &[PARAMS], "text"),
        (call("client.push", json!({"text": "x", "base64": "eA=="})), &[PARAMS], ""),
        (call("client.push", json!({"text": 5})), &[PARAMS], "text"),
        (call("client.push", json!({"base64": "*"})), &[PARAMS], "base64"),
        (call("client.move", json!({})), &[PARAMS], "room"),
        (call("client.move", json!({"room": "no spaces"})), &[PARAMS], "room"),
        (call("client.move", json!({"room": "x".repeat(129)})), &[PARAMS], "room"),
        (call("client.move", json!({"room": ""})), &[PARAMS], "room"),
        (call("client.pause", json!({"direction": "up", "policy": "buffer"})), &[PARAMS], "direction"),
        (call("client.pause", json!({"direction": "in", "policy": "eat"})), &[PARAMS], "policy"),
        (call("client.resume", json!({"direction": 1})), &[PARAMS], "direction"),
        (call("client.set", json!({"slow": "whatever"})), &[PARAMS], "slow"),
        (call("client.set", json!({"queue_bytes": -1})), &[PARAMS], "queue_bytes"),
        (call("client.set", json!({"meta": "not an object"})), &[PARAMS], "meta"),
        (call("client.close", json!({"code": 999})), &[PARAMS], "code"),
        (call("client.close", json!({"code": 1001})), &[PARAMS], "code"),
        (call("client.close", json!({"code": 3000})), &[PARAMS], "code"),
        (call("client.close", json!({"code": 5000})), &[PARAMS], "code"),
        (call("client.close", json!({"code": "4000"})), &[PARAMS], "code"),
        (call("client.close", json!({"reason": "r".repeat(124)})), &[PARAMS], "reason"),
        (call("pair.ticket", json!({})), &[PARAMS], "side"),
        (call("pair.ticket", json!({"side": "middle"})), &[PARAMS], "side"),
        (call("room.members", json!({"limit": "all"})), &[PARAMS], "limit"),
        (call("client.ping", json!({"key": 5})), &[PARAMS], "key"),
    ];
    let mut unnamed = Vec::new();
    for (message, codes, word) in table {
        let case = message.to_string();
        sibling.send_value(&message).await;
        let reply = next_reply(&mut sibling).await;
        let replies = match &reply {
            Value::Array(each) => each.clone(),
            one => vec![one.clone()],
        };
        for reply in replies {
            let fault = check_fault(&case, &reply, codes);
            let told = format!("{} {}", fault.message, fault.data);
            if !told.contains(word) {
                unnamed.push(format!("{case}: {word} is not named in {}", fault.message));
            }
            if codes == [PARAMS] || codes == [UNKNOWN] {
                assert_eq!(reply["id"], "q", "{case}: {reply}");
            }
        }
    }
    sibling.must("pair.get", json!({})).await;
    assert!(sibling.story().is_empty(), "nothing took effect: {:#?}", sibling.story());
    assert!(unnamed.is_empty(), "what is wrong is named: {unnamed:#?}");
}

#[rstest]
#[case::json(Codec::Json)]
#[case::message_pack(Codec::MessagePack)]
#[tokio::test(flavor = "multi_thread")]
async fn ids_are_echoed_and_batches_are_taken_up_to_64(#[case] codec: Codec) {
    let cluster = Cluster::memory(&Settings::new()).await;
    let (_, _pipe, mut sibling) = attached(&cluster, codec).await;
    let ids = [
        json!(0),
        json!(-1),
        json!(9_007_199_254_740_993_u64),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1.5),
        json!(""),
        json!("ü\u{1F980}\u{0}"),
        json!("1"),
        Value::Null,
    ];
    let get = |id: &Value| json!({"jsonrpc": "2.0", "id": id, "method": "pair.get"});
    for id in &ids {
        sibling.send_value(&get(id)).await;
        let reply = next_reply(&mut sibling).await;
        assert_eq!(reply.get("id"), Some(id), "{reply}");
        assert!(reply["result"].is_object(), "{reply}");
    }

    // Params in an array of one object.
    let listed = json!({"jsonrpc": "2.0", "id": 1, "method": "client.push", "params": [{"text": "x"}]});
    sibling.send_value(&listed).await;
    let reply = next_reply(&mut sibling).await;
    assert_eq!(reply["result"]["position"], 1, "{reply}");

    let batch = |n: u64| Value::Array((0..n).map(|id| get(&json!(id))).collect());
    sibling.send_value(&batch(64)).await;
    let reply = next_reply(&mut sibling).await;
    let mut answered: Vec<_> = reply.as_array().expect("a batch").iter().map(|r| &r["id"]).collect();
    answered.sort_by_key(|id| id.as_u64());
    assert!(answered.into_iter().cloned().eq((0..64).map(|n| json!(n))), "{reply}");

    sibling.send_value(&batch(65)).await;
    let reply = next_reply(&mut sibling).await;
    check_fault("a batch of 65", &reply, &[INVALID, -32013]);
    assert_eq!(reply.get("id"), Some(&Value::Null), "{reply}");

    // Good and bad in one batch: each for itself.
    sibling.send_value(&json!([1, get(&json!("a")), {"jsonrpc": "2.0", "id": "b", "method": "x"}])).await;
    let reply = next_reply(&mut sibling).await;
    let each = reply.as_array().expect("a batch");
    assert_eq!(each.len(), 3, "{reply}");
    let of = |id: Value| each.iter().find(|r| r["id"] == id).expect("a reply to each");
    assert_eq!(of(Value::Null)["error"]["code"], INVALID);
    assert!(of(json!("a"))["result"].is_object());
    assert_eq!(of(json!("b"))["error"]["code"], UNKNOWN);

    // Notifications take effect and are not answered, alone or in a batch.
    let quiet = |n: u64| json!({"jsonrpc": "2.0", "method": "client.set", "params": {"meta": {"n": n}}});
    let before = replies(&sibling);
    sibling.send_value(&quiet(1)).await;
    sibling.send_value(&json!([quiet(2), quiet(3)])).await;
    for _ in 0..3 {
        sibling.event("client.changed").await;
    }
    sibling.must("pair.get", json!({})).await;
    assert_eq!(replies(&sibling), before + 1, "only the question was answered");
}

fn replies(sibling: &Sibling) -> usize {
    let arrivals = sibling.arrivals().into_iter();
    arrivals.filter(|arrival| matches!(arrival, Arrival::Reply(_))).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn message_pack_keeps_the_rules_of_json() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let (_, _pipe, mut sibling) = attached(&cluster, Codec::MessagePack).await;
    let good = rmp_serde::to_vec_named(&json!({"jsonrpc": "2.0", "id": 1, "method": "pair.get"}))
        .expect("a value to encode");
    let with = |tail: &[u8]| [&good[..], tail].concat();
    // A call whose params are the given bytes: a map of four, its last key `params`.
    let params = |bytes: &[u8]| {
        let mut call = good.clone();
        call[0] = 0x84;
        [&call[..], b"\xa6params", bytes].concat()
    };
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("a reserved byte", vec![0xc1]),
        ("trailing bytes", with(&[0xc0])),
        ("cut off", good[..good.len() - 1].to_vec()),
        ("an array of 4 G", vec![0xdd, 0xff, 0xff, 0xff, 0xff]),
        ("a map of 4 G", vec![0xdf, 0xff, 0xff, 0xff, 0xff]),
        ("a string of 4 G", vec![0xdb, 0xff, 0xff, 0xff, 0xff]),
        ("bytes of 4 G", vec![0xc6, 0xff, 0xff, 0xff, 0xff]),
        ("a thousand arrays deep", vec![0x91; 1_000]),
        ("ten thousand maps deep", [0x81, 0xa1, b'a'].repeat(10_000)),
        ("an ext type", vec![0xd4, 0x01, 0x00]),
        ("an ext type as params", params(&[0xd4, 0x01, 0x00])),
        ("a timestamp in params", params(&[0x81, 0xa4, b'm', b'e', b't', b'a', 0xd6, 0xff, 0, 0, 0, 0])),
        ("integer keys", vec![0x81, 0x01, 0x02]),
        ("an integer key in params", params(&[0x81, 0x01, 0x02])),
        ("keys of bytes", params(&[0x81, 0xc4, 0x01, b'a', 0x02])),
        ("a key twice", params(&[0x82, 0xa3, b'k', b'e', b'y', 0xa1, b'a', 0xa3, b'k', b'e', b'y', 0xa1, b'b'])),
        ("a string that is no UTF-8", params(&[0x81, 0xa3, b'k', b'e', b'y', 0xa1, 0xff])),
        ("a map cut off", vec![0x82, 0xa2, b'i', b'd', 0x01]),
        ("a number that is none", params(&[0x81, 0xa4, b'c', b'o', b'd', b'e', 0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0])),
    ];
    for (case, bytes) in table {
        sibling.send(Message::binary(bytes)).await;
        let reply = next_reply(&mut sibling).await;
        check_fault(case, &reply, &[PARSE, INVALID, PARAMS]);
        sibling.must("pair.get", json!({})).await;
        next_reply(&mut sibling).await;
    }
}

#[rstest]
#[case::json(Codec::Json)]
#[case::message_pack(Codec::MessagePack)]
#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_the_other_kind_closes_a_sibling_and_not_its_pipe(#[case] codec: Codec) {
    let cluster = Cluster::memory(&Settings::new()).await;
    let (_, mut pipe, mut sibling) = attached(&cluster, codec).await;
    let other = match codec {
        Codec::Json => Codec::MessagePack,
        Codec::MessagePack => Codec::Json,
    };
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "client.close"});
    sibling.send(other.encode(&call)).await;
    assert_eq!(sibling.closed().await.code, Some(1003));
    assert!(sibling.story().is_empty(), "nothing took effect");
    pipe.text("still here").await;
    assert!(pipe.is_open());
}

#[rstest]
#[case::json(Codec::Json)]
#[case::message_pack(Codec::MessagePack)]
#[tokio::test(flavor = "multi_thread")]
async fn without_the_grant_a_command_is_forbidden_by_name(#[case] codec: Codec) {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let (pair, mut pipe, mut owner) = attached(&cluster, Codec::Json).await;
    let few = json!({"side": "sibling", "grants": ["pair.get", "pair.ticket", "client.push"]});
    let ticket = owner.must("pair.ticket", few).await;
    let ticket = ticket["ticket"].as_str().expect("a ticket").to_owned();
    let dial = support::Dial::to(cluster.node(1), pair.path("/sibling")).bearer(&ticket);
    let mut guest = Sibling::over(codec, dial).await;
    let mut granted: Vec<_> = guest.ready()["data"]["grants"].as_array().expect("grants").clone();
    granted.sort_by_key(ToString::to_string);
    assert_eq!(granted, [json!("client.push"), json!("pair.get"), json!("pair.ticket")]);
    guest.must("pair.get", json!({})).await;
    guest.must("client.push", json!({"text": "granted"})).await;
    guest.must("rpc.discover", json!({})).await;
    for (method, params) in [
        ("client.close", json!({})),
        ("client.send", json!({"text": "x"})),
        ("client.move", json!({"room": "attic"})),
        ("client.pause", json!({"direction": "in", "policy": "drop"})),
        ("client.set", json!({"meta": {}})),
        ("client.ping", json!({})),
        ("pair.end", json!({})),
        ("room.get", json!({})),
        ("room.members", json!({})),
    ] {
        let fault = guest.call(method, params.clone()).await.expect_err(method);
        assert_eq!(fault.code, -32003, "{method}: {fault:?}");
        let told = format!("{} {}", fault.message, fault.data);
        assert!(told.contains(method), "the missing grant is named: {told}");
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let over_http = cluster.node(1).ask("POST", &pair.path("/commands"), &ticket, Some(&call)).await;
        assert_eq!(over_http.json()["error"]["code"], -32003, "{method}: {}", over_http.text());
    }
    // Nobody gives away more than he has.
    for more in [json!(["client.close"]), json!(["*"]), json!(["client.*"]), json!(["room.set"])] {
        let wish = json!({"side": "sibling", "grants": more});
        let fault = guest.call("pair.ticket", wish).await.expect_err("a ticket with more");
        assert_eq!(fault.code, -32003, "{fault:?}");
    }
    assert_eq!(pipe.next_text().await, "granted");
    assert!(pipe.is_open(), "nothing else took effect");
    let state = cluster.node(0).ask("GET", &pair.path(""), ADMIN_KEY, None).await;
    assert_eq!(state.json()["room"], "hall");
}
