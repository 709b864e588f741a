//! The load's pairs: a client socket that is read, and siblings that command and listen.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, tungstenite::Message};

use super::{Outcome, raw::Raw};
use crate::cli::wire::{Socket, open};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pair whose client socket is open and read.
pub(super) struct Pair {
    pub(super) id: String,
    pub(super) ticket: String,
    /// Dropping it closes the client socket.
    _client: JoinSet<()>,
}

impl Pair {
    /// Makes a pair by opening its client socket.
    pub(super) async fn open(address: SocketAddr) -> Outcome<Self> {
        let mut client = Raw::open(address, "/v1/rooms/bench/client?format=binary", None).await?;
        let (id, ticket) = (client.header("sibling-pair")?.to_owned(), client.header("sibling-ticket")?.to_owned());
        let mut reading = JoinSet::new();
        reading.spawn(async move { while client.next().await.is_ok() {} });
        Ok(Self { id, ticket, _client: reading })
    }

    /// The path of its siblings.
    pub(super) fn path(&self) -> String {
        format!("/v1/pairs/{}/sibling", self.id)
    }

    /// Attaches a sibling, on any node.
    pub(super) async fn attach(&self, address: SocketAddr) -> Outcome<Sibling> {
        let opened = open(&format!("http://{address}"), &self.path(), Some(&self.ticket)).await;
        let (socket, _) = opened.map_err(|refused| format!("a sibling was refused: {}", refused.why))?;
        if let MaybeTlsStream::Plain(tcp) = socket.get_ref() {
            drop(tcp.set_nodelay(true));
        }
        let mut sibling = Sibling { socket, given: 0 };
        sibling.hear(|message| message["params"]["type"] == "ready").await?;
        Ok(sibling)
    }
}

/// A sibling socket.
pub(super) struct Sibling {
    socket: Socket,
    given: u64,
}

impl Sibling {
    /// Gives a command; returns its number.
    pub(super) async fn give(&mut self, method: &str, params: Value) -> Outcome<u64> {
        self.given += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.given, "method": method, "params": params}).to_string();
        let sent = self.socket.send(Message::text(request)).await;
        sent.map(|()| self.given).map_err(|error| format!("a sibling's connection broke: {error}"))
    }

    /// Waits for a message like this; others are passed over, but a refused command is a failure.
    pub(super) async fn hear(&mut self, wanted: impl Fn(&Value) -> bool) -> Outcome<Value> {
        let hearing = async {
            while let Some(message) = self.socket.next().await {
                let message = message.map_err(|error| format!("a sibling's connection broke: {error}"))?;
                let Message::Text(text) = message else { continue };
                let message: Value = serde_json::from_str(&text).map_err(|error| format!("no JSON: {error}"))?;
                if let Some(why) = message.get("error") {
                    return Err(format!("a command was refused: {why}"));
                }
                if wanted(&message) {
                    return Ok(message);
                }
            }
            Err("a sibling socket was closed in the middle of a measurement".into())
        };
        let late = || Err(format!("a sibling waited for {} s in vain", PATIENCE.as_secs()));
        timeout(PATIENCE, hearing).await.unwrap_or_else(|_| late())
    }

    /// Waits for the answer to a command.
    pub(super) async fn answered(&mut self, number: u64) -> Outcome<()> {
        self.hear(|message| message["id"] == number).await.map(drop)
    }
}
