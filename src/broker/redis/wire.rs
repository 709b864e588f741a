//! A bare connection to one server, for live traffic: what goes out is written as it stands, what comes in is handed
//! out frame by frame, and whoever has it waits for nobody else.
//!
//! fred's connections serve many callers through tasks and queues of their own. For live traffic, where one task has the
//! connection and order is all that counts, these cost more than Redis does (measured on two cores: a command to a
//! client on another node and back took 370 to 425 µs over fred's connections and 300 over these, of which Redis' two
//! hops are 150; and every payload was copied once more on each side). So this one is driven by the task that has it.
//! When it breaks it stays broken: the task opens another, and knows what that means.

use std::{fmt::Write as _, io::IoSlice, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use fred::{
    error::{Error, ErrorKind},
    types::config::{Config, Server, ServerConfig, TlsConnector},
};
use redis_protocol::resp3::{decode::complete::decode_bytes_mut, types::BytesFrame};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::connect::{ALIVE, CONNECT, KEEP_ALIVE, SILENCE};

/// How much is read at once, at least and at most: it follows what comes.
const CHUNK: std::ops::RangeInclusive<usize> = 8 * 1024..=256 * 1024;
/// What is shorter is joined with what is beside it, rather than handed to the kernel by itself.
pub(super) const SHORT: usize = 4 * 1024;
/// What stands behind a word.
pub(super) const END: &[u8] = b"\r\n";
/// How many pieces the kernel is handed at once.
const PIECES: usize = 64;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection in RESP3.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    /// What has been read and not been handed out.
    heard: BytesMut,
    chunk: usize,
}

/// What is to be written, in its order.
#[derive(Default)]
pub(super) struct Sheet {
    pieces: Vec<Bytes>,
    /// Short ones that have not become a piece yet.
    joined: BytesMut,
}

impl Sheet {
    /// Adds what is a command, or several.
    pub(super) fn add(&mut self, bytes: Bytes) {
        if bytes.len() < SHORT {
            self.joined.extend_from_slice(&bytes);
        } else {
            self.end_piece();
            self.pieces.push(bytes);
        }
    }

    /// Adds a command of these words.
    pub(super) fn say(&mut self, words: &[&str]) {
        head(&mut self.joined, words.len());
        for word in words {
            blob(&mut self.joined, word.as_bytes());
        }
    }

    fn end_piece(&mut self) {
        if !self.joined.is_empty() {
            self.pieces.push(self.joined.split().freeze());
        }
    }
}

/// Begins a command of so many words.
pub(super) fn head(command: &mut BytesMut, words: usize) {
    // Writing to memory does not fail.
    let _ = write!(command, "*{words}\r\n");
}

/// Adds a word to it.
pub(super) fn blob(command: &mut BytesMut, word: &[u8]) {
    begin_blob(command, word.len());
    command.extend_from_slice(word);
    command.extend_from_slice(END);
}

/// What stands before a word of so many bytes.
pub(super) fn begin_blob(command: &mut BytesMut, bytes: usize) {
    let _ = write!(command, "${bytes}\r\n");
}

/// What Redis says if it is a refusal.
pub(super) fn refusal(frame: &BytesFrame) -> Option<Error> {
    let words = match frame {
        BytesFrame::SimpleError { data, .. } => data.to_string(),
        BytesFrame::BlobError { data, .. } => String::from_utf8_lossy(data).into_owned(),
        _ => return None,
    };
    Some(Error::new(ErrorKind::Unknown, words))
}

/// Whether it was an answer, and the connection is as good as before.
pub(super) fn is_refusal(error: &Error) -> bool {
    *error.kind() == ErrorKind::Unknown
}

/// What Redis says if it is a text.
pub(super) fn text(frame: &BytesFrame) -> Option<&str> {
    match frame {
        BytesFrame::BlobString { data, .. }
        | BytesFrame::SimpleString { data, .. }
        | BytesFrame::VerbatimString { data, .. } => std::str::from_utf8(data).ok(),
        _ => None,
    }
}

fn broken(error: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::IO, error)
}

impl Wire {
    /// Connects to the server that `config` names, or fails after `limit`.
    pub(super) async fn open(config: &Config, limit: Duration) -> Result<Self, Error> {
        let opening = async {
            let ServerConfig::Centralized { server } = &config.server else {
                return Err(Error::new(ErrorKind::Config, "one connection is to one server"));
            };
            let mut wire =
                Self { stream: stream_to(server, config).await?, heard: BytesMut::new(), chunk: *CHUNK.start() };
            let mut hello = vec!["HELLO", "3"];
            if let Some(password) = &config.password {
                hello.extend(["AUTH", config.username.as_deref().unwrap_or("default"), password]);
            }
            wire.ask(&hello).await?;
            Ok(wire)
        };
        timeout(limit.min(CONNECT), opening)
            .await
            .map_err(|_| Error::new(ErrorKind::Timeout, "no connection in time"))?
    }

    /// Says one thing and returns the answer. Nothing else may be under way.
    pub(super) async fn ask(&mut self, words: &[&str]) -> Result<BytesFrame, Error> {
        let mut sheet = Sheet::default();
        sheet.say(words);
        self.write(sheet).await?;
        let answer = self.answer().await?;
        refusal(&answer).map_or(Ok(answer), Err)
    }

    /// The next frame, where one is owed. After an error the connection is of no use any more.
    pub(super) async fn answer(&mut self) -> Result<BytesFrame, Error> {
        let silent = |_| Error::new(ErrorKind::Timeout, "redis owes an answer for too long");
        timeout(SILENCE, self.next()).await.map_err(silent)?
    }

    /// The next frame. May be dropped while it waits. After an error the connection is of no use any more.
    pub(super) async fn next(&mut self) -> Result<BytesFrame, Error> {
        loop {
            if let Some(frame) = self.next_here()? {
                return Ok(frame);
            }
            self.heard.reserve(self.chunk);
            let room = self.heard.capacity() - self.heard.len();
            let count = self.stream.read_buf(&mut self.heard).await.map_err(|error| broken(error.to_string()))?;
            if count == 0 {
                return Err(broken("redis closed the connection"));
            }
            let fitting = if count == room { self.chunk * 2 } else { self.chunk / 2 };
            self.chunk = fitting.clamp(*CHUNK.start(), *CHUNK.end());
        }
    }

    /// The next frame, if all of it has been read already.
    pub(super) fn next_here(&mut self) -> Result<Option<BytesFrame>, Error> {
        if self.heard.is_empty() {
            return Ok(None);
        }
        let frame = decode_bytes_mut(&mut self.heard).map_err(|error| broken(error.to_string()))?;
        Ok(frame.map(|(frame, ..)| frame))
    }

    /// Writes. After an error, and after being dropped halfway, the connection is of no use any more.
    pub(super) async fn write(&mut self, mut sheet: Sheet) -> Result<(), Error> {
        sheet.end_piece();
        let writing = async {
            let mut pieces = &mut sheet.pieces[..];
            while !pieces.is_empty() {
                let slices: Vec<IoSlice<'_>> = pieces.iter().take(PIECES).map(|piece| IoSlice::new(piece)).collect();
                let mut count = match self.stream.write_vectored(&slices).await {
                    Ok(0) => return Err(broken("redis takes nothing more")),
                    Ok(count) => count,
                    Err(error) => return Err(broken(error.to_string())),
                };
                while let Some(first) = pieces.first_mut().filter(|_| count > 0) {
                    let done = first.len().min(count);
                    first.advance(done);
                    count -= done;
                    if first.is_empty() {
                        pieces = &mut pieces[1..];
                    }
                }
            }
            self.stream.flush().await.map_err(|error| broken(error.to_string()))
        };
        timeout(SILENCE, writing).await.map_err(|_| Error::new(ErrorKind::Timeout, "redis does not read"))?
    }
}

async fn stream_to(server: &Server, config: &Config) -> Result<Box<dyn Stream>, Error> {
    let tcp = TcpStream::connect((&*server.host, server.port)).await.map_err(|error| broken(error.to_string()))?;
    tcp.set_nodelay(true).map_err(|error| broken(error.to_string()))?;
    let socket = SockRef::from(&tcp);
    // Where a system can't, a dead server is found out by its silence.
    let [time, interval] = KEEP_ALIVE;
    drop(socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(interval)));
    #[cfg(target_os = "linux")]
    drop(socket.set_tcp_user_timeout(Some(ALIVE)));
    let Some(tls) = &config.tls else { return Ok(Box::new(tcp)) };
    let TlsConnector::Rustls(connector) = &tls.connector;
    let name = ServerName::try_from(server.host.to_string())
        .map_err(|error| Error::new(ErrorKind::Tls, error.to_string()))?;
    let stream = connector.connect(name, tcp).await.map_err(|error| Error::new(ErrorKind::Tls, error.to_string()))?;
    Ok(Box::new(stream))
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn wire() -> (Wire, DuplexStream) {
        let (near, far) = duplex(16);
        (Wire { stream: Box::new(near), heard: BytesMut::new(), chunk: *CHUNK.start() }, far)
    }

    #[tokio::test]
    async fn frames_come_out_whole_however_they_come_in() {
        let (mut wire, mut far) = wire();
        let said = b">3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$5\r\n\r\nabc\r\n:1\r\n-MOVED 1 a:2\r\n";
        let saying = async {
            far.write_all(said).await.unwrap();
            drop(far);
        };
        let hearing = async {
            let BytesFrame::Push { data, .. } = wire.next().await.unwrap() else { panic!("no push") };
            assert_eq!((text(&data[1]), text(&data[2])), (Some("c"), Some("\r\nabc")));
            assert!(matches!(wire.next().await.unwrap(), BytesFrame::Number { data: 1, .. }));
            assert_eq!(refusal(&wire.next().await.unwrap()).unwrap().details(), "MOVED 1 a:2");
            assert!(wire.next().await.is_err(), "it was closed");
        };
        tokio::join!(saying, hearing);
    }

    #[tokio::test]
    async fn what_is_written_keeps_its_order_long_or_short() {
        let (mut wire, mut far) = wire();
        let mut sheet = Sheet::default();
        let mut all = Vec::new();
        for length in [0, 3, SHORT, 2 * SHORT + 1, 1, 1] {
            let piece = vec![u8::try_from(length % 251).unwrap(); length];
            all.extend_from_slice(&piece);
            sheet.add(piece.into());
        }
        sheet.say(&["PING", "é"]);
        all.extend_from_slice("*2\r\n$4\r\nPING\r\n$2\r\né\r\n".as_bytes());
        let mut came = vec![0; all.len()];
        let (written, read) = tokio::join!(wire.write(sheet), far.read_exact(&mut came));
        written.unwrap();
        read.unwrap();
        assert!(came == all);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it() {
        let (mut wire, far) = wire();
        assert_eq!(*wire.answer().await.unwrap_err().kind(), ErrorKind::Timeout);
        let mut sheet = Sheet::default();
        sheet.add(vec![0; 64].into());
        assert_eq!(*wire.write(sheet).await.unwrap_err().kind(), ErrorKind::Timeout);
        drop(far);
    }
}
