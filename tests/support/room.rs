//! A room's specification over HTTP, and pipes into it.

use serde_json::{Value, json};

use super::{ADMIN_KEY, ClientSocket, Gateway, Pair, Reply, Sibling};

/// The path of a room, in which a slash is written as `%2F`.
pub fn room_path(room: &str) -> String {
    format!("/v1/rooms/{}", room.replace('/', "%2F"))
}

/// Specifies a room as the admin; public, unless the specification says otherwise.
pub async fn specify(node: &Gateway, room: &str, mut spec: Value) -> Value {
    if spec.get("public").is_none() {
        spec["public"] = json!(true);
    }
    let reply = node.ask("PUT", &room_path(room), ADMIN_KEY, Some(&spec)).await;
    assert_eq!(reply.status, 200, "{spec}: {}", reply.text());
    reply.json()
}

/// Asks for something of a room as the admin.
pub async fn of_room(node: &Gateway, method: &str, room: &str, tail: &str) -> Reply {
    node.ask(method, &format!("{}{tail}", room_path(room)), ADMIN_KEY, None).await
}

/// An agent: a pipe, and its sibling, which has heard of it.
pub struct Agent {
    pub pair: Pair,
    pub pipe: ClientSocket,
    pub sibling: Sibling,
}

impl Agent {
    /// Its pipe is on one node, its sibling on another.
    pub async fn enter(pipe_on: &Gateway, sibling_on: &Gateway, body: Value) -> Self {
        Self::of(pipe_on, sibling_on, Pair::from(pipe_on, body).await).await
    }

    pub async fn of(pipe_on: &Gateway, sibling_on: &Gateway, pair: Pair) -> Self {
        let mut sibling = Sibling::open(sibling_on, &pair).await;
        let pipe = ClientSocket::open(pipe_on, &pair).await;
        sibling.event("client.opened").await;
        Self { pair, pipe, sibling }
    }
}

/// Sends the numbers from `from` to `to`, without it.
pub async fn count_up(pipe: &mut ClientSocket, from: usize, to: usize) {
    for n in from..to {
        pipe.text(n.to_string()).await;
    }
}

/// What was received, where all of it are numbers.
pub fn numbers(pipe: &ClientSocket) -> Vec<usize> {
    pipe.texts().iter().map(|text| text.parse().expect("a number")).collect()
}
