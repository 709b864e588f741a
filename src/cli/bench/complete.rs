//! The gateway as it stands in production: pairs made with tickets, a sibling beside each, everything limited that
//! can be limited.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    Outcome,
    child::{Pages, Process},
    fan::{Fan, frame},
    messages::Messages,
    raw::{Raw, connect},
};

/// The bearer that makes pairs, and that may publish where not everyone may.
pub(super) const KEY: &str = "the-key-of-a-benchmark";
/// Limits that nobody reaches, so that only keeping them is measured.
const ROOMS: &str = r#"
[rooms."fan-*"]
format = "binary"
publish = "granted"
violations = "drop"
capacity = 100000
max_message_bytes = 1000000
rate = { messages_per_second = 1e9, bytes_per_second = 1e12 }
"#;

/// Starts one. Rooms that begin with `fan-` have limits, too.
pub(super) fn start(broker: &str) -> Outcome<Process> {
    start_with(broker, Pages::Usual)
}

/// The same, with other pages.
pub(super) fn start_with(broker: &str, pages: Pages) -> Outcome<Process> {
    let file = std::env::temp_dir().join(format!("sibling-bench-{}.toml", std::process::id()));
    std::fs::write(&file, ROOMS).map_err(|error| format!("{}: {error}", file.display()))?;
    let limits = [
        ["--config", &file.to_string_lossy()],
        ["--admin-key", KEY],
        ["--connections-per-address", "100000"],
        ["--requests-per-second", "1000000"],
        ["--requests-per-account", "1000000"],
        ["--commands-per-second", "1000000"],
        ["--max-connections", "200000"],
    ];
    let gateway = Process::gateway_with(broker, pages, limits.as_flattened());
    drop(std::fs::remove_file(&file));
    gateway
}

/// A pair that was made, and what opens its sides.
pub(super) struct Made {
    pub(super) id: String,
    pub(super) client: String,
    pub(super) sibling: String,
}

impl Made {
    /// Opens its client socket, over a connection.
    pub(super) async fn open(&self, tcp: TcpStream, least: usize) -> Outcome<Raw> {
        let path = format!("/v1/pairs/{}/client", self.id);
        Raw::shake(tcp, &path, &bearer(&self.client), Messages::frames(least)).await
    }

    /// Attaches a sibling, and waits until it was told `ready`.
    pub(super) async fn attach(&self, tcp: TcpStream) -> Outcome<Raw> {
        let path = format!("/v1/pairs/{}/sibling", self.id);
        let mut sibling = Raw::shake(tcp, &path, &bearer(&self.sibling), Messages::frames(0)).await?;
        sibling.next().await?;
        Ok(sibling)
    }
}

fn bearer(ticket: &str) -> String {
    format!("authorization: Bearer {ticket}\r\n")
}

/// Makes pairs, over one connection.
pub(super) struct Maker {
    tcp: TcpStream,
    read: Vec<u8>,
}

impl Maker {
    pub(super) async fn open(address: SocketAddr) -> Outcome<Self> {
        Ok(Self { tcp: connect(address).await?, read: Vec::new() })
    }

    pub(super) async fn make(&mut self, room: &str) -> Outcome<Made> {
        let body = json!({"room": room, "format": "binary", "linger": 600}).to_string();
        let request = format!(
            "POST /v1/pairs HTTP/1.1\r\nhost: localhost\r\n{}content-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            bearer(KEY),
            body.len()
        );
        let lost = |error: std::io::Error| format!("the connection that makes pairs broke: {error}");
        self.tcp.write_all(request.as_bytes()).await.map_err(lost)?;
        loop {
            if let Some(answer) = self.answer() {
                let text = |side: &str, field: &str| match answer.pointer(&format!("{side}/{field}")) {
                    Some(Value::String(text)) => Ok(text.clone()),
                    _ => Err(format!("no pair was made: {answer}")),
                };
                let (client, sibling) = (text("/client", "ticket")?, text("/sibling", "ticket")?);
                return Ok(Made { id: text("", "pair")?, client, sibling });
            }
            if self.tcp.read_buf(&mut self.read).await.map_err(lost)? == 0 {
                return Err("the connection that makes pairs was hung up".into());
            }
        }
    }

    /// The body of an answer that has arrived.
    fn answer(&mut self) -> Option<Value> {
        let head = self.read.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let text = String::from_utf8_lossy(&self.read[..head]).to_ascii_lowercase();
        let length: usize = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())?;
        let body = self.read.get(head..head + length)?;
        let body = serde_json::from_slice(body).unwrap_or_default();
        self.read.drain(..head + length);
        Some(body)
    }
}

/// A sender at the first address and receivers at the others in turn, in one room; a sibling beside each of them.
pub(super) async fn fan(addresses: &[SocketAddr], room: &str, receivers: u32, size: usize) -> Outcome<Fan> {
    let mut maker = Maker::open(addresses[0]).await?;
    let mut clients = Vec::new();
    let mut beside = Vec::new();
    let others = if addresses.len() > 1 { &addresses[1..] } else { addresses };
    for address in std::iter::once(&addresses[0]).chain(others.iter().cycle()).take(receivers as usize + 1) {
        let made = maker.make(room).await?;
        clients.push(made.open(connect(*address).await?, size).await?);
        beside.push(made.attach(connect(*address).await?).await?);
    }
    let sender = clients.remove(0);
    let mut fan = Fan::new(sender, &frame(size), clients, size);
    fan.beside = beside;
    Ok(fan)
}
