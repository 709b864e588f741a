//! WebSockets by hand: a load that costs little, so that what is measured is the gateway.

use std::{cell::RefCell, io::ErrorKind, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{Outcome, messages::Messages};

/// How long somebody may take to say something in a handshake.
const PATIENCE: Duration = Duration::from_secs(10);

thread_local! {
    /// What is read is counted and forgotten: one buffer a thread stays in its cache.
    static SCRAP: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
}

/// A connection from which messages come; most began with a handshake.
pub(super) struct Raw {
    pub(super) tcp: TcpStream,
    /// The head of the handshake's answer.
    head: String,
    messages: Messages,
    /// What came together with that head, and was not looked at yet.
    early: Vec<u8>,
}

/// Connects.
pub(super) async fn connect(address: SocketAddr) -> Outcome<TcpStream> {
    let tcp = TcpStream::connect(address).await.map_err(|error| format!("can't connect to {address}: {error}"))?;
    drop(tcp.set_nodelay(true));
    Ok(tcp)
}

impl Raw {
    /// A connection without a handshake.
    pub(super) fn bare(tcp: TcpStream, messages: Messages) -> Self {
        Self { tcp, head: String::new(), messages, early: Vec::new() }
    }

    /// Opens a WebSocket to a gateway.
    pub(super) async fn open(address: SocketAddr, path: &str, ticket: Option<&str>) -> Outcome<Self> {
        let bearer = ticket.map(|ticket| format!("authorization: Bearer {ticket}\r\n")).unwrap_or_default();
        Self::shake(connect(address).await?, path, &bearer, Messages::frames(0)).await
    }

    /// Opens a WebSocket over a connection.
    pub(super) async fn shake(tcp: TcpStream, path: &str, headers: &str, messages: Messages) -> Outcome<Self> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        let lost = |error: std::io::Error| format!("the handshake of {path} broke off: {error}");
        let mut raw = Self::bare(tcp, messages);
        raw.tcp.write_all(request.as_bytes()).await.map_err(lost)?;
        let mut bytes = Vec::with_capacity(1_024);
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if raw.tcp.read_buf(&mut bytes).await.map_err(lost)? == 0 {
                return Err(format!("the handshake of {path} was hung up"));
            }
        };
        raw.head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        if !raw.head.starts_with("HTTP/1.1 101") {
            return Err(format!("{path} was refused: {}", raw.head.lines().next().unwrap_or_default()));
        }
        raw.early = bytes.split_off(end);
        Ok(raw)
    }

    /// A header of the handshake's answer.
    pub(super) fn header(&self, name: &str) -> Outcome<&str> {
        let found = self
            .head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| value).ok_or_else(|| format!("the handshake's answer has no {name}"))
    }

    /// Sends one frame.
    pub(super) async fn say(&mut self, opcode: u8, payload: &[u8]) -> Outcome<()> {
        self.write(&[&write_head(opcode, payload.len(), true)[..], payload].concat()).await
    }

    /// Sends bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.tcp.write_all(bytes).await.map_err(|error| format!("a connection broke: {error}"))
    }

    /// Reads until something was said: all that was said by then, which is not counted.
    pub(super) async fn hear(&mut self, wanted: &[u8]) -> Outcome<Vec<u8>> {
        let mut heard = std::mem::take(&mut self.early);
        while !heard.windows(wanted.len()).any(|part| part == wanted) {
            let late = || format!("{:?} was not said within {} s", wanted.escape_ascii(), PATIENCE.as_secs());
            match timeout(PATIENCE, self.tcp.read_buf(&mut heard)).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0)) => return Err(format!("hung up instead of {:?}", wanted.escape_ascii())),
                Ok(Err(error)) => return Err(format!("a connection broke: {error}")),
                Err(_) => return Err(late()),
            }
        }
        Ok(heard)
    }

    /// Waits for messages and counts them: how many ended, and how many bytes were read.
    pub(super) async fn next(&mut self) -> Outcome<(u64, usize)> {
        self.next_seen(|_| ()).await
    }

    /// The same, and has somebody look at what is read.
    pub(super) async fn next_seen(&mut self, mut look: impl FnMut(&[u8])) -> Outcome<(u64, usize)> {
        let early = std::mem::take(&mut self.early);
        look(&early);
        let mut ended = self.messages.count(&early)?;
        let mut read = early.len();
        while ended == 0 {
            let broken = |error: std::io::Error| format!("a connection broke: {error}");
            self.tcp.readable().await.map_err(broken)?;
            let (tcp, messages) = (&self.tcp, &mut self.messages);
            (ended, read) = SCRAP.with_borrow_mut(|scrap| match tcp.try_read(scrap) {
                Ok(0) => Err("a connection was hung up in the middle of a measurement".into()),
                Ok(n) => {
                    look(&scrap[..n]);
                    messages.count(&scrap[..n]).map(|ended| (ended, n))
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok((0, 0)),
                Err(error) => Err(broken(error)),
            })?;
        }
        Ok((ended, read))
    }
}

/// A frame's header: as a server writes it, or as a client does, with a mask that changes nothing.
pub(super) fn write_head(opcode: u8, payload: usize, masked: bool) -> Vec<u8> {
    let bit = if masked { 0x80 } else { 0 };
    let mut head = vec![0x80 | opcode];
    match payload {
        n @ 0..=125 => head.push(bit | n as u8),
        n @ 126..=0xFFFF => {
            head.push(bit | 126);
            head.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            head.push(bit | 127);
            head.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    head.extend_from_slice(if masked { &[0; 4] } else { &[] });
    head
}
