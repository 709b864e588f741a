//! Where the nodes are, as the agents see it, and how an agent reaches one.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::Value;
use tokio::net::TcpSocket;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Reply, Ws, exchange};

/// How long an agent waits for a handshake or an HTTP answer before it tries another node.
const ANSWER: Duration = Duration::from_secs(8);

/// The addresses of the nodes. A load balancer would know as much: who is gone for good, not who is silent.
#[derive(Default)]
pub struct Field {
    up: Mutex<Vec<SocketAddr>>,
    names: Mutex<BTreeMap<SocketAddr, String>>,
    harmed: Mutex<HashSet<String>>,
}

impl Field {
    pub fn add(&self, node: SocketAddr) {
        self.up.lock().expect("no panic under the lock").push(node);
    }

    pub fn remove(&self, node: SocketAddr) {
        self.up.lock().expect("no panic under the lock").retain(|up| *up != node);
    }

    /// Any node but `not`, if there is one.
    pub fn pick(&self, not: Option<SocketAddr>) -> Option<SocketAddr> {
        let up = self.up.lock().expect("no panic under the lock");
        let others: Vec<_> = up.iter().filter(|node| Some(**node) != not).copied().collect();
        others.choose(&mut rand::rng()).or_else(|| up.first()).copied()
    }

    /// A node told its name. A new process on an old port has another.
    pub fn name(&self, node: SocketAddr, name: &str) {
        self.names.lock().expect("no panic under the lock").insert(node, name.to_owned());
    }

    pub fn names(&self) -> BTreeMap<SocketAddr, String> {
        self.names.lock().expect("no panic under the lock").clone()
    }

    /// From here on the loss of this node may be told.
    pub fn harm(&self, node: SocketAddr) {
        let name = self.names().get(&node).cloned().expect("every node under load has told its name");
        self.harmed.lock().expect("no panic under the lock").insert(name);
    }

    pub fn harmed(&self) -> HashSet<String> {
        self.harmed.lock().expect("no panic under the lock").clone()
    }
}

/// Some time from a range of milliseconds: nobody does anything at the same moment as the others.
pub fn jitter(milliseconds: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rand::rng().random_range(milliseconds))
}

/// How long to wait after so many failures in a row: longer each time, and bounded.
pub fn back_off(failures: u32) -> Duration {
    let most = (50 << failures.min(5)).min(1_000);
    jitter(most / 4..most)
}

/// Why there is no socket.
#[derive(Debug)]
pub enum Refused {
    /// An HTTP status, and what the body said.
    With(u16, String),
    /// No answer in time, or a broken connection.
    Unreachable,
}

/// Opens a socket; unlike the tests' usual dialling, a refusal and a silence are answers.
pub async fn dial(node: SocketAddr, path: &str, ticket: &str, protocol: Option<&str>) -> Result<Ws, Refused> {
    let handshake = async {
        let mut request = format!("ws://{node}{path}").into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("Authorization", format!("Bearer {ticket}").parse().expect("a header value"));
        if let Some(protocol) = protocol {
            headers.insert("Sec-WebSocket-Protocol", protocol.parse().expect("a header value"));
        }
        let socket = TcpSocket::new_v4()?;
        // A dropped socket resets its connection: that is how agents vanish.
        socket.set_zero_linger()?;
        let stream = socket.connect(node).await?;
        stream.set_nodelay(true)?;
        tokio_tungstenite::client_async(request, stream).await
    };
    match tokio::time::timeout(ANSWER, handshake).await {
        Ok(Ok((ws, _))) => Ok(ws),
        Ok(Err(Error::Http(refusal))) => {
            let body = refusal.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            Err(Refused::With(refusal.status().as_u16(), body.into_owned()))
        }
        Ok(Err(_)) | Err(_) => Err(Refused::Unreachable),
    }
}

/// One JSON-RPC message over HTTP; `None` when no whole answer came in time.
pub async fn post(node: SocketAddr, path: &str, ticket: &str, body: &Value) -> Option<Reply> {
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\nAuthorization: Bearer {ticket}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let reply = tokio::time::timeout(ANSWER, exchange(node, request.as_bytes())).await.ok()?;
    (reply.status != 0).then_some(reply)
}
