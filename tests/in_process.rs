//! Two nodes in one process on the embedded broker: they are a cluster too, and leave nothing behind.

use std::time::Duration;

use clap::Parser;
use futures_util::{SinkExt, StreamExt, future::join_all};
use serde_json::{Value, json};
use sibling_sockets::{
    broker::memory::Memory,
    cli::{Running, start},
    config::{Config, ServeArgs},
    node::NewPair,
    node::Wish,
    protocol::{Authority, Format, FrameKind, Grants, NodeId, PairId, RoomName, RoomSpec, Run, RunBuilder, Side},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    serve: ServeArgs,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn node(memory: &Memory) -> Running {
    let secret = "a secret that both nodes share, 32 bytes";
    let args = Args::parse_from(["sibling", "--listen", "127.0.0.1:0", "--secret", secret, "--drain-seconds", "2"]);
    let config = Config::mean(args.serve).expect("good settings");
    let id = NodeId::fresh();
    start(&config, Some((id, memory.link(id)))).await.expect("a node")
}

async fn make_pair(node: &Running, room: &RoomName) -> PairId {
    let (offers, meta, authority) = (vec![Format::Text], serde_json::Map::new(), Authority::admin());
    let new = NewPair { room: room.clone(), offers, meta, linger: None, authority };
    node.node.create_pair(new).await.expect("a pair").0
}

async fn open(node: &Running, pair: PairId, side: Side) -> Socket {
    let said = node.node.sign_ticket(side, pair, Grants::all(), None).expect("a ticket");
    let ticket = said["ticket"].as_str().expect("a ticket");
    let url = format!("ws://{}/v1/pairs/{pair}/{}?ticket={ticket}", node.address, side.as_str());
    timeout(DEADLINE, connect_async(url)).await.expect("in time").expect("a socket").0
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn next(socket: &mut Socket) -> Message {
    timeout(DEADLINE, socket.next()).await.expect("in time").expect("an open socket").expect("a message")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_are_a_cluster_and_leave_nothing_behind() {
    let memory = Memory::new();
    let (a, b) = (node(&memory).await, node(&memory).await);
    let hall: RoomName = "hall".parse().expect("a name");
    let pair = make_pair(&a, &hall).await;
    let mut client = open(&a, pair, Side::Client).await;
    let mut sibling = open(&b, pair, Side::Sibling).await;
    let push = json!({"jsonrpc": "2.0", "id": 1, "method": "client.push", "params": {"text": "hello"}});
    sibling.send(Message::text(push.to_string())).await.expect("an open socket");
    assert_eq!(next(&mut client).await, Message::text("hello"));
    assert!(a.node.hub.room(&hall).is_some() && a.node.hub.client_count() == 1);

    let end = json!({"jsonrpc": "2.0", "id": 2, "method": "pair.end"});
    sibling.send(Message::text(end.to_string())).await.expect("an open socket");
    assert!(matches!(next(&mut client).await, Message::Close(_)));
    drop(client);
    loop {
        let Message::Text(text) = next(&mut sibling).await else { continue };
        let told: Value = serde_json::from_str(&text).expect("JSON");
        if told["params"]["type"] == "pair.ended" {
            break;
        }
    }
    drop(sibling);
    until("the hubs are empty", || {
        let empty = |node: &Running| node.node.hub.client_count() == 0 && node.node.hub.watched().is_empty();
        empty(&a) && empty(&b) && a.node.hub.room(&hall).is_none()
    })
    .await;
    until("the broker's groups are empty", || memory.kept().groups == 0).await;
    assert!(a.node.drain().await && b.node.drain().await, "nothing runs that a drain does not wait for");
}

/// Whoever opens a socket may go away between the moment when it is open and the one when it hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_socket_that_nobody_comes_for_is_given_up() {
    let memory = Memory::new();
    let (a, b) = (node(&memory).await, node(&memory).await);
    let pair = make_pair(&a, &"hall".parse().expect("a name")).await;
    let unserved = a.node.open_client(pair, Vec::new(), Wish::default()).await.expect("it opens");
    let mut sibling = open(&b, pair, Side::Sibling).await;
    let push =
        json!({"jsonrpc": "2.0", "id": 1, "method": "client.push", "params": {"text": "anybody?", "key": "k"}});
    sibling.send(Message::text(push.to_string())).await.expect("an open socket");
    // Its mail waits in the mailbox.
    until("the command has come", || memory.kept().records > 0 && unserved.mailbox.waiting() == 1).await;
    drop(unserved);
    let mut client = open(&b, pair, Side::Client).await;
    // Sent again for as long as nobody was there, it finds the one that is.
    loop {
        let Message::Text(text) = next(&mut sibling).await else { continue };
        let told: Value = serde_json::from_str(&text).expect("JSON");
        if told["id"] == 1 {
            if told["error"].is_null() {
                break;
            }
            assert_eq!(told["error"]["code"], -32017, "{told}");
            sibling.send(Message::text(push.to_string())).await.expect("an open socket");
        }
    }
    assert_eq!(next(&mut client).await, Message::text("anybody?"));
    drop((client, sibling));
    assert!(a.node.drain().await && b.node.drain().await);
}

/// Its actor may not know it yet: what it still says must not stand beside what the pair's new socket says.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_socket_that_has_lost_its_pair_says_nothing() {
    let memory = Memory::new();
    let (a, b) = (node(&memory).await, node(&memory).await);
    let hall: RoomName = "hall".parse().expect("a name");
    let pairs = join_all([(); 4].map(|()| make_pair(&a, &hall))).await;
    let [lost, kept, near, far] = pairs.try_into().expect("four pairs");
    let senders = [open(&a, lost, Side::Client).await, open(&a, kept, Side::Client).await];
    let mut receivers = [open(&a, near, Side::Client).await, open(&b, far, Side::Client).await];
    let [lost, kept] = [lost, kept].map(|pair| (pair, a.node.hub.fence(pair).expect("it is here")));
    // So a node does with what it finds lost before it renews its lease.
    a.node.hub.unregister(lost.0, lost.1);

    let room = a.node.hub.room(&hall).expect("a room with members");
    let frame = |text: &str| -> Run {
        let mut run = RunBuilder::default();
        run.push(FrameKind::Text, text.as_bytes());
        run.finish()
    };
    let ordered: RoomSpec = serde_json::from_value(json!({"order": "room"})).expect("a specification");
    for spec in [RoomSpec::default(), ordered] {
        assert!(!a.node.publish(&room, &spec, &frame("a ghost"), Some(lost)));
        assert!(a.node.publish(&room, &spec, &frame("alive"), Some(kept)));
        for receiver in &mut receivers {
            assert_eq!(next(receiver).await, Message::text("alive"));
        }
    }
    drop((receivers, senders));
    assert!(a.node.drain().await && b.node.drain().await);
}
