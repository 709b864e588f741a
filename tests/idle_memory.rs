//! What idle sockets cost in memory, before traffic and after it. Figures are in the benchmark; this is to notice when an
//! idle socket grows by a buffer, a queue or a future.

mod support;

use futures_util::{StreamExt as _, stream};
use support::{ClientSocket, Cluster, Gateway, Pair, Settings, Sibling, until};
use tokio_tungstenite::tungstenite::Message;

const PAIRS: usize = 1_000;
const A_ROOM: usize = 10;
/// A tenth more than it was when this was written, in bytes; a buffer of 512 bytes for each socket is beyond.
const A_PAIR: u64 = 19 << 9;
/// What traffic may leave: buffers that many sockets share.
const AFTER_TRAFFIC: u64 = A_PAIR + (1 << 10);

async fn open(node: &Gateway, count: usize, room: &str) -> Vec<(ClientSocket, Sibling)> {
    let one = |n: usize| async move {
        let pair = Pair::make(node, &format!("{room}-{}", n / A_ROOM), "binary").await;
        (ClientSocket::open(node, &pair).await, Sibling::open(node, &pair).await)
    };
    stream::iter(0..count).map(one).buffered(16).collect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_sockets_are_small_and_traffic_leaves_nothing_with_them() {
    let cluster = Cluster::memory(&Settings::new().small_pages()).await;
    let node = cluster.node(0);
    // What a process has when it has served its first is not what its sockets cost.
    let _first = open(node, 20, "first").await;
    let before = node.resident_bytes();
    let each = || node.resident_bytes().saturating_sub(before) / PAIRS as u64;
    let mut pairs = open(node, PAIRS, "idle").await;
    until("what handshakes took is given back", || each() <= A_PAIR).await;

    // A frame of 16 KiB from each to each other in its room.
    for room in pairs.chunks_mut(A_ROOM) {
        for (client, _) in room.iter_mut() {
            client.binary(vec![7; 16 << 10]).await;
        }
        for (client, _) in room {
            client.until_received(A_ROOM - 1).await;
            assert_eq!(client.last(), Some(Message::binary(vec![7; 16 << 10])));
        }
    }
    until("what traffic took is given back", || each() <= AFTER_TRAFFIC).await;
}
