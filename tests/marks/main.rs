//! Marks stand exactly where they belong, for every receiver: checked frame by frame while a sender streams as fast as it
//! can, and while pipes are paused, too slow, moved and replaced.
//!
//! Each frame carries its number among all that its sender sent. A mark that stands behind the sender's frame N has to be
//! told with `at` = how many of the frames that a receiver got have a number up to N: there is only one right answer.
//! `MARKS=100000 cargo test --test marks every_mark` checks so many.

#[path = "../support/mod.rs"]
mod support;

mod full_speed;
mod places;
mod stream;

use std::time::Duration;

use serde_json::{Value, json};
use support::{Agent, ClientSocket, Cluster, Sibling, kind_of};
use tokio_tungstenite::tungstenite::Message;

const ROOM: &str = "stage";
/// How far the sender may be ahead of those who set its pace.
const WINDOW: u64 = 4_000;
/// How long it waits for them at most before it sends more.
const PAUSE: Duration = Duration::from_millis(200);
const CONFLICT: i64 = -32009;

fn numbered(numbers: impl IntoIterator<Item = u64>) -> Vec<Message> {
    numbers.into_iter().map(|number| Message::binary(number.to_be_bytes().to_vec())).collect()
}

fn number(frame: &Message) -> u64 {
    u64::from_be_bytes(frame.clone().into_data()[..].try_into().expect("eight bytes"))
}

fn numbers(pipe: &ClientSocket) -> Vec<u64> {
    pipe.frames().iter().map(number).collect()
}

fn marks_of(sibling: &Sibling) -> Vec<Value> {
    sibling.events().into_iter().filter(|params| kind_of(params) == "mark").collect()
}

/// A member that watches marks: its pipe on node `n`, its sibling on the next.
async fn member(cluster: &Cluster, n: usize, format: &str) -> Agent {
    let body = json!({"room": ROOM, "format": format});
    let mut agent = Agent::enter(cluster.node(n), cluster.node(n + 1), body).await;
    let watching = agent.sibling.must("room.watch", json!({"marks": true})).await;
    assert_eq!(watching["marks"], true, "{watching}");
    agent
}

async fn members(cluster: &Cluster, count: usize) -> Vec<Agent> {
    futures_util::future::join_all((0..count).map(|n| member(cluster, n, "binary"))).await
}

fn count(value: &Value, name: &str) -> usize {
    let count = value[name].as_u64().unwrap_or_else(|| panic!("no {name}: {value}"));
    usize::try_from(count).expect("a count")
}
