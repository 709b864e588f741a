//! The commands of one sibling take effect in the order in which they were given, wherever the client socket is.

mod support;

use serde_json::json;
use support::{ClientSocket, Cluster, Pair, Settings, Sibling};

#[tokio::test(flavor = "multi_thread")]
async fn commands_take_effect_in_the_order_given() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    for round in 0..20 {
        let pair = Pair::make(cluster.node(0), "hall", "text").await;
        // The sibling's node does not know yet where the client socket is: it looks it up for the first commands, and
        // is told by client.opened in the midst of them.
        let mut sibling = Sibling::open(cluster.node(1), &pair).await;
        let mut pipe = ClientSocket::open(cluster.node(0), &pair).await;
        for n in 0..40 {
            sibling.ask("client.push", json!({"text": n.to_string()})).await;
        }
        for n in 0..40 {
            assert_eq!(pipe.next_text().await, n.to_string(), "round {round}");
        }
    }
}
