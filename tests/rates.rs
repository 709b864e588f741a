//! What one address, one pair or one client may use up, as it shows from outside.

mod support;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use rstest::rstest;
use serde_json::{Value, json};
use support::{
    Arrival, ClientSocket, Cluster, Dial, Gateway, Pair, RawSocket, Reply, Settings, Sibling, Sse, eventually,
    exchange_from, kind_of, within,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;

const HOME: [u8; 4] = [127, 0, 0, 1];

/// A request of its own connection, from one address of this machine. Without a ticket it is answered 401.
async fn ask(node: &Gateway, from: [u8; 4], headers: &[(&str, &str)]) -> Reply {
    let mut head = format!("GET /v1/validate HTTP/1.1\r\nHost: {}\r\n", node.addr);
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    exchange_from(IpAddr::from(from), node.addr, (head + "\r\n").as_bytes()).await
}

/// Checks a refusal for its code and the time to come back, and returns that, in seconds.
#[track_caller]
fn refused(reply: &Reply) -> u64 {
    assert_eq!(reply.problem(429), "rate_limited");
    let after = reply.header("retry-after").and_then(|after| after.parse().ok());
    after.expect("a 429 has Retry-After in seconds")
}

async fn connect(node: &Gateway, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((IpAddr::from(from), 0).into()).expect("an address of the loopback network");
    socket.connect(node.addr).await.expect("a connection")
}

/// Opens a client socket as soon as the address has a place for it.
async fn open(node: &Gateway, dial: impl Fn() -> Dial) -> ClientSocket {
    let ws = eventually("there is a place", async || dial().connect().await.ok()).await;
    assert_eq!(node.get("/livez").await.status, 200);
    ClientSocket::over(ws.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_an_address_are_counted_for_all_of_their_lives() {
    let cluster = Cluster::memory(&Settings::new().set("CONNECTIONS_PER_ADDRESS", 3)).await;
    let node = cluster.node(0);
    let mut pairs = Vec::new();
    for _ in 0..4 {
        // The connection of the last one may just be ending.
        let made = eventually("a pair is made", async || {
            let reply = node.send("POST", "/v1/pairs", &[], Some(&json!({"room": "hall", "format": "text"}))).await;
            (reply.status == 201).then_some(reply)
        });
        pairs.push(Pair::from_reply(&made.await));
    }
    let mut open_ones = Vec::new();
    for pair in &pairs[..3] {
        open_ones.push(open(node, || pair.dial_client(node)).await);
    }
    // Sockets were connections, and still are.
    for _ in 0..3 {
        let mut stream = connect(node, HOME).await;
        let head = format!("GET /v1/validate HTTP/1.1\r\nHost: {}\r\n\r\n", node.addr);
        tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.expect("a written head");
        let mut answer = Vec::new();
        // It is kept alive by nobody.
        within("the answer and the end", stream.read_to_end(&mut answer)).await.expect("an end");
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(answer.starts_with("http/1.1 429 ") && answer.contains("connection: close"), "{answer}");
    }
    assert_eq!(refused(&ask(node, HOME, &[]).await), 1);
    let plain = pairs[3].dial_client(node).connect().await;
    assert!(matches!(&plain, Err(tokio_tungstenite::tungstenite::Error::Http(r)) if r.status() == 429), "{plain:?}");
    let page = pairs[3].dial_client(node).offer("siblings.text").in_a_browser().closed().await;
    assert_eq!(page.code, Some(3429), "{page:?}");
    assert!(page.reason.contains("connections"), "{page:?}");
    let forged = [("X-Forwarded-For", "198.51.100.1")];
    refused(&ask(node, HOME, &forged).await);
    assert_eq!(ask(node, [127, 0, 0, 2], &[]).await.status, 401, "another address has its own count");

    // Those who are refused and stay are few, and the rest is answered unheard.
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(connect(node, HOME).await);
    }
    let unheard = eventually("one is answered unheard", async || {
        let reply = exchange_from(IpAddr::from(HOME), node.addr, b"").await;
        (reply.status != 0).then_some(reply)
    })
    .await;
    refused(&unheard);
    assert_eq!(ask(node, [127, 0, 0, 2], &[]).await.status, 401);
    drop(silent);

    // A place is free when its socket is gone, however it went.
    open_ones.remove(0).vanish().await;
    open_ones.push(open(node, || pairs[3].dial_client(node)).await);
    eventually("the address is full again", async || (ask(node, HOME, &[]).await.status == 429).then_some(())).await;
    assert!(open_ones.iter().all(ClientSocket::is_open), "who was there is not touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_an_address_have_a_rate() {
    let cluster = Cluster::memory(&Settings::new().set("REQUESTS_PER_SECOND", 1)).await;
    let node = cluster.node(0);
    let (a, b) = ([127, 0, 0, 2], [127, 0, 0, 3]);
    let started = Instant::now();
    let mut let_in = 0;
    for n in 0..30 {
        // Nobody asked to believe the header.
        let reply = ask(node, a, &[("X-Forwarded-For", &format!("198.51.100.{n}"))]).await;
        match reply.status {
            401 => let_in += 1,
            _ => assert_eq!(refused(&reply), 1),
        }
    }
    let most = 3 + started.elapsed().as_secs();
    assert!((2..=most).contains(&let_in), "{let_in} in {:?} at 1 a second", started.elapsed());
    assert_eq!(ask(node, b, &[]).await.status, 401, "another address has a bucket of its own");
    let closed = eventually("a page is refused", async || {
        let closed = Dial::to(node, "/v1/rooms/hall/client").from(a.into()).in_a_browser().closed().await;
        closed.code.filter(|code| *code == 3429).map(|_| closed)
    })
    .await;
    assert!(closed.reason.contains("requests"), "{closed:?}");
    for _ in 0..50 {
        let probe = format!("GET /livez HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", node.addr);
        assert_eq!(exchange_from(a.into(), node.addr, probe.as_bytes()).await.status, 200, "a probe is not limited");
    }
    eventually("it is let in again", async || (ask(node, a, &[]).await.status == 401).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_is_believed_for_whom_it_asks() {
    let settings = Settings::new().set("REQUESTS_PER_SECOND", 1).set("TRUSTED_PROXIES", "127.0.0.8/29, 192.0.2.1");
    let cluster = Cluster::memory(&settings).await;
    let node = cluster.node(0);
    let proxy = [127, 0, 0, 9];
    let for_whom = async |from: [u8; 4], header: &str| ask(node, from, &[("X-Forwarded-For", header)]).await.status;
    let mut statuses = Vec::new();
    for n in 0..20 {
        statuses.push(for_whom(proxy, &format!("198.51.100.{n}")).await);
    }
    assert_eq!(statuses, [401; 20], "they are twenty");
    // What the asker itself wrote stands on the left.
    let mut let_in = 0;
    let started = Instant::now();
    for n in 0..20 {
        let_in += u64::from(for_whom(proxy, &format!("198.51.100.{n}, 203.0.113.5, 192.0.2.1")).await == 401);
    }
    assert!(let_in <= 3 + started.elapsed().as_secs(), "{let_in}: they are one, whatever it says");
    let mut let_in = 0;
    let started = Instant::now();
    for n in 0..20 {
        let_in += u64::from(for_whom([127, 0, 0, 16], &format!("198.51.100.{}", 100 + n)).await == 401);
    }
    assert!(let_in <= 3 + started.elapsed().as_secs(), "{let_in}: this is no proxy");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_sockets_and_streams_are_counted_each() {
    let settings = Settings::new().set("CONNECTIONS_PER_ADDRESS", 1).set("TRUSTED_PROXIES", "127.0.0.1");
    let cluster = Cluster::memory(&settings).await;
    let node = cluster.node(0);
    let (pair, other) = (Pair::make(node, "hall", "text").await, Pair::make(node, "hall", "text").await);
    let dial = |pair: &Pair, whom: &str| pair.dial_client(node).header("X-Forwarded-For", whom);
    let _first = ClientSocket::over(dial(&pair, "198.51.100.1").open().await);
    let second = dial(&other, "198.51.100.1").connect().await;
    assert!(
        matches!(&second, Err(tokio_tungstenite::tungstenite::Error::Http(r)) if r.status() == 429),
        "{second:?}"
    );
    let elsewhere = ClientSocket::over(dial(&other, "198.51.100.2").open().await);
    elsewhere.vanish().await;
    let whom = [("X-Forwarded-For", "198.51.100.2")];
    let bearer = format!("Bearer {}", pair.sibling_ticket);
    let stream = eventually("its place is free", async || {
        let stream = Sse::open(node, &pair.path("/events"), &[whom[0], ("Authorization", &bearer)]).await;
        (stream.head.status == 200).then_some(stream)
    })
    .await;
    refused(&ask(node, HOME, &whom).await);
    drop(stream);
    eventually("so is the stream's", async || (ask(node, HOME, &whom).await.status == 401).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sibling_that_hurries_is_read_more_slowly_and_answered() {
    let cluster = Cluster::memory(&Settings::new().set("COMMANDS_PER_SECOND", 20)).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "hall", "text").await;
    let mut hurried = Sibling::open(node, &pair).await;
    let mut calm = Sibling::open(node, &pair).await;
    let started = Instant::now();
    let get = |id: u64| json!({"jsonrpc": "2.0", "id": id, "method": "pair.get"});
    for id in 1..=40 {
        hurried.send_value(&get(id)).await;
    }
    // A batch is as many as are in it.
    hurried.send_value(&Value::Array((41..=60).map(get).collect())).await;
    hurried.send_value(&get(61)).await;
    calm.must("pair.get", json!({})).await;
    assert!(started.elapsed() < Duration::from_secs(2), "another sibling has its own rate: {:?}", started.elapsed());
    let all = |arrivals: &[Arrival]| {
        let replies = arrivals.iter().filter_map(|arrival| match arrival {
            Arrival::Reply(Value::Array(each)) => Some(each.clone()),
            Arrival::Reply(reply) => Some(vec![reply.clone()]),
            Arrival::Event(_) => None,
        });
        let mut ids: Vec<_> = replies
            .flatten()
            .map(|reply| {
                assert!(reply["result"].is_object(), "{reply}");
                reply["id"].as_u64().expect("an id")
            })
            .collect();
        ids.sort_unstable();
        ids
    };
    hurried.until("all replies", |arrivals| all(arrivals).len() == 61).await;
    let took = started.elapsed();
    assert!(all(&hurried.arrivals()).into_iter().eq(1..=61), "each is answered, and well");
    // 20 at once, and 40 more before the last.
    assert!(took >= Duration::from_millis(1_950), "61 commands at 20 a second took {took:?}");
    assert!(hurried.is_open());
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_over_http_have_a_rate_for_each_pair() {
    let cluster = Cluster::memory(&Settings::new().set("COMMANDS_PER_SECOND", 2)).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "hall", "text").await;
    let get = json!({"jsonrpc": "2.0", "id": 1, "method": "pair.get"});
    let batch = Value::Array(vec![get.clone(); 64]);
    let reply = pair.post(node, &batch).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let after = refused(&pair.post(node, &batch).await);
    assert!((20..=32).contains(&after), "64 commands at 2 a second in {after} s");
    let other = Pair::make(node, "hall", "text").await;
    other.command(node, "pair.get", json!({})).await.expect("another pair has its own rate");
    let later = refused(&pair.post(node, &batch).await);
    assert!(later <= after, "who is refused spends nothing: {after} s, then {later} s");
    let again = eventually("one command is taken again", async || {
        let reply = pair.post(node, &get).await;
        (reply.status == 200).then_some(reply)
    })
    .await;
    assert!(again.json()["result"].is_object(), "{}", again.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_over_its_rate_is_held_back_and_its_sibling_told() {
    const MIB: f64 = 1_048_576.0;
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let (speaks, hears) = (Pair::make(a, "cam", "binary").await, Pair::make(a, "cam", "binary").await);
    let mut sender = ClientSocket::open(a, &speaks).await;
    let mut receiver = ClientSocket::open_and_told(b, &hears).await;
    let mut sibling = Sibling::open(b, &speaks).await;
    let rate = json!({"rate": {"messages_per_second": 1_000.0, "bytes_per_second": 4.0 * MIB}});
    sibling.must("client.set", rate).await;
    // What goes at once is more than a queue takes from one that is not fast.
    let wide = json!({"queue_bytes": 64 << 20});
    hears.command(b, "client.set", wide).await.expect("a wide queue");
    // Within its rate nothing is told.
    sender.binary(vec![0; 100]).await;
    receiver.until_received(1).await;
    let frames: usize = 64;
    let sending = async {
        let started = Instant::now();
        for n in 0..frames {
            sender.binary(vec![n as u8; 512 * 1_024]).await;
        }
        started.elapsed()
    };
    let watching = async {
        let told = sibling.event("client.limited").await;
        let started = Instant::now();
        sibling.must("pair.get", json!({})).await;
        assert!(started.elapsed() < Duration::from_secs(1), "control waits for no data");
        told
    };
    let started = Instant::now();
    let (sent_in, told) = tokio::join!(sending, watching);
    receiver.until_received(1 + frames).await;
    let took = started.elapsed();
    // 32 MiB, of which 4 go at once.
    assert!(took >= Duration::from_millis(6_500), "32 MiB at 4 a second came in {took:?}");
    assert!(sent_in >= Duration::from_secs(3), "the sender is not held back: all was taken in {sent_in:?}");
    let all = receiver.frames();
    let right = all[1..].iter().enumerate().all(|(n, frame)| *frame == Message::binary(vec![n as u8; 512 * 1_024]));
    assert!(right && receiver.is_open() && sender.is_open(), "every frame, whole, in order");

    let data = &told["data"];
    assert_eq!((&data["limit"], &data["bytes_per_second"]), (&json!("rate"), &json!(4.0 * MIB)), "{told}");
    assert_eq!(data["messages_per_second"], 1_000.0, "{told}");
    assert!(data["since"].is_string() && told.get("cause").is_none(), "{told}");
    let story = sibling.story();
    let limited: Vec<_> = story.iter().filter(|params| kind_of(params) == "client.limited").collect();
    let most = took.as_secs() as usize + 2;
    assert!((2..=most).contains(&limited.len()), "{} times in {took:?}: {limited:#?}", limited.len());
    let times: Vec<_> = limited.iter().map(|params| params["at"].as_str().expect("a time").to_owned()).collect();
    assert!(times.is_sorted(), "{times:?}");
    // The node that tells it is not the one that hears it, and another pair's sibling does not.
    let mut other = Sibling::wake(a, &hears, "start").await;
    other.must("pair.get", json!({})).await;
    assert!(other.story().iter().all(|params| kind_of(params) != "client.limited"), "{:#?}", other.story());
}

#[rstest]
#[case::pings(0x89)]
#[case::pongs(0x8a)]
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_control_frames_is_rate_limited(#[case] opcode: u8) {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "hall", "text").await;
    let mut sibling = Sibling::open(node, &pair).await;
    let frame = RawSocket::masked(opcode, b"idle");
    for (path, ticket, protocol) in
        [("/client", &pair.client_ticket, None), ("/sibling", &pair.sibling_ticket, Some("siblings.v1.json"))]
    {
        let mut peer = RawSocket::upgrade(node, &pair.path(path), ticket, protocol).await;
        peer.write(&frame.repeat(100)).await;
        // The answer to the last ping shows that all of them were heard, and borne.
        peer.write(&RawSocket::masked(0x89, b"last")).await;
        while peer.frame().await.expect("a socket that is open") != (0xa, b"last".to_vec()) {}
        peer.write(&frame.repeat(1_000)).await;
        assert_eq!(peer.close_code().await, Some(3429), "{path}");
    }
    let closed = sibling.event("client.closed").await;
    assert_eq!((&closed["data"]["code"], &closed["data"]["by"]), (&json!(3429), &json!("gateway")), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pongs_that_were_asked_for_are_no_flood() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    let pair = Pair::make(node, "hall", "text").await;
    let mut pipe = ClientSocket::open_and_told(node, &pair).await;
    let mut sibling = Sibling::open(node, &pair).await;
    sibling.pour(1_500, |_| ("client.ping", json!({}))).await;
    sibling.must("client.push", json!({"text": "still here"})).await;
    assert_eq!(pipe.next_text().await, "still here");
    assert!(pipe.is_open());
}
