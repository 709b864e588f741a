//! WebSockets by hand: a load that costs little, so that what is measured is the gateway.

use std::{cell::RefCell, io::ErrorKind, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::Outcome;

/// How a close frame begins.
const CLOSE: u8 = 0x88;

thread_local! {
    /// What is read is counted and forgotten: one buffer a thread stays in its cache.
    static SCRAP: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
}

/// A connection from which frames come; those of the gateway began with a handshake.
pub(super) struct Raw {
    pub(super) tcp: TcpStream,
    /// The head of the handshake's answer.
    head: String,
    frames: Frames,
    /// Frames that came together with that head.
    early: u64,
}

/// Connects.
pub(super) async fn connect(address: SocketAddr) -> Outcome<TcpStream> {
    let tcp = TcpStream::connect(address).await.map_err(|error| format!("can't connect to {address}: {error}"))?;
    drop(tcp.set_nodelay(true));
    Ok(tcp)
}

impl Raw {
    /// A connection without a handshake.
    pub(super) fn bare(tcp: TcpStream) -> Self {
        Self { tcp, head: String::new(), frames: Frames::default(), early: 0 }
    }

    /// Opens a WebSocket.
    pub(super) async fn open(address: SocketAddr, path: &str, ticket: Option<&str>) -> Outcome<Self> {
        let tcp = connect(address).await?;
        let bearer = ticket.map(|ticket| format!("authorization: Bearer {ticket}\r\n")).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{bearer}\r\n"
        );
        let lost = |error: std::io::Error| format!("the gateway broke off the handshake of {path}: {error}");
        let mut raw = Self::bare(tcp);
        raw.tcp.write_all(request.as_bytes()).await.map_err(lost)?;
        let mut bytes = Vec::with_capacity(1_024);
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if raw.tcp.read_buf(&mut bytes).await.map_err(lost)? == 0 {
                return Err(format!("the gateway hung up in the handshake of {path}"));
            }
        };
        raw.head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        if !raw.head.starts_with("HTTP/1.1 101") {
            return Err(format!("{path} was refused: {}", raw.head.lines().next().unwrap_or_default()));
        }
        raw.early = raw.frames.count(&bytes[end..])?;
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

    /// Waits for frames and counts them: how many ended, and how many bytes were read.
    pub(super) async fn next(&mut self) -> Outcome<(u64, usize)> {
        if self.early > 0 {
            return Ok((std::mem::take(&mut self.early), 0));
        }
        loop {
            let broken = |error: std::io::Error| format!("a connection broke: {error}");
            self.tcp.readable().await.map_err(broken)?;
            let (tcp, frames) = (&self.tcp, &mut self.frames);
            let counted = SCRAP.with_borrow_mut(|scrap| match tcp.try_read(scrap) {
                Ok(0) => Err("a connection was hung up in the middle of a measurement".into()),
                Ok(n) => frames.count(&scrap[..n]).map(|ended| (ended, n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok((0, 0)),
                Err(error) => Err(broken(error)),
            })?;
            if counted.0 > 0 {
                return Ok(counted);
            }
        }
    }
}

/// Counts the frames in a stream of bytes; looks at nothing but their headers.
#[derive(Default)]
struct Frames {
    /// Bytes of payload that are still to come.
    skip: u64,
    /// The first bytes of a header that came in parts.
    begun: Vec<u8>,
}

impl Frames {
    /// How many frames end in these bytes.
    fn count(&mut self, mut bytes: &[u8]) -> Outcome<u64> {
        let mut ended = 0;
        loop {
            if self.skip > 0 {
                let step = self.skip.min(bytes.len() as u64);
                self.skip -= step;
                bytes = &bytes[step as usize..];
                if self.skip > 0 {
                    return Ok(ended);
                }
                ended += 1;
            }
            if bytes.is_empty() {
                return Ok(ended);
            }
            let (first, payload) = if self.begun.is_empty()
                && let Some((length, payload)) = head(bytes)
            {
                let first = bytes[0];
                bytes = &bytes[length..];
                (first, payload)
            } else {
                self.begun.push(bytes[0]);
                bytes = &bytes[1..];
                let Some((_, payload)) = head(&self.begun) else { continue };
                let first = self.begun[0];
                self.begun.clear();
                (first, payload)
            };
            match payload {
                _ if first == CLOSE => {
                    return Err("the gateway closed a socket in the middle of a measurement".into());
                }
                0 => ended += 1,
                more => self.skip = more,
            }
        }
    }
}

/// The lengths of a header and of what follows it.
fn head(bytes: &[u8]) -> Option<(usize, u64)> {
    let (&[_, seven], rest) = bytes.split_first_chunk::<2>()?;
    match seven {
        126 => Some((4, u16::from_be_bytes(*rest.first_chunk()?).into())),
        127 => Some((10, u64::from_be_bytes(*rest.first_chunk()?))),
        n => Some((2, n.into())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_however_they_come() {
        let mut wire = Vec::new();
        for size in [0, 1, 125, 126, 65_535, 65_536, 3] {
            wire.extend(write_head(2, size, false));
            wire.resize(wire.len() + size, 7);
        }
        for step in [1, 2, 3, 7, 1_000, 64 << 10, wire.len()] {
            let mut frames = Frames::default();
            let counted: u64 = wire.chunks(step).map(|part| frames.count(part).unwrap()).sum();
            assert_eq!(counted, 7, "in steps of {step}");
        }
        assert!(Frames::default().count(&[CLOSE, 2, 3, 232]).is_err());
    }
}
