//! The reading half of a WebSocket.
//!
//! tokio-tungstenite unmasks, joins fragments and guards the protocol. What it would write by itself (pongs, the
//! answer to a close) is thrown away: the actor answers, through the one writer, at frame boundaries that are ours.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::tcp::OwnedReadHalf,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, error::CapacityError, protocol::Role, protocol::WebSocketConfig},
};

use crate::protocol::{CloseCode, Closing, FrameKind};

/// An idle socket costs this much; a burst is read in pieces of it.
const READ_BUFFER: usize = 4_096;
/// How many bytes may arrive for each byte of the largest message before one is complete: a message may come in many
/// fragments with a header each, but not in empty ones without end.
const OVERHEAD: usize = 16;

/// What a peer said.
#[derive(Debug)]
pub enum Incoming {
    /// A data frame (joined, if it came in fragments).
    Frame(FrameKind, Bytes),
    /// A ping, to be answered with the same bytes.
    Ping(Bytes),
    /// A pong.
    Pong(Bytes),
    /// A close, to be answered.
    Close(Closing),
    /// It broke the rules: the socket is to be closed with this.
    Broken(CloseCode),
    /// The connection is gone.
    Gone,
}

/// The reading half.
pub(super) struct Reader {
    stream: WebSocketStream<Inlet>,
    ended: bool,
}

impl Reader {
    pub(super) async fn new(tcp: OwnedReadHalf, leftover: Bytes, limit: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(1_024)
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit));
        let allowance = limit.saturating_mul(OVERHEAD).saturating_add(64 << 10);
        // Even when empty it would keep the whole buffer of the handshake.
        let leftover = if leftover.is_empty() { Bytes::new() } else { leftover };
        let inlet = Inlet { tcp, leftover, since_message: 0, allowance };
        Self { stream: WebSocketStream::from_raw_socket(inlet, Role::Server, Some(config)).await, ended: false }
    }

    /// What the peer says next. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Incoming {
        if self.ended {
            return std::future::pending().await;
        }
        loop {
            let message = self.stream.next().await;
            self.stream.get_mut().since_message = 0;
            let incoming = match message {
                Some(Ok(Message::Text(text))) => Incoming::Frame(FrameKind::Text, text.into()),
                Some(Ok(Message::Binary(bytes))) => Incoming::Frame(FrameKind::Binary, bytes),
                Some(Ok(Message::Ping(bytes))) => Incoming::Ping(bytes),
                Some(Ok(Message::Pong(bytes))) => Incoming::Pong(bytes),
                Some(Ok(Message::Close(frame))) => {
                    Incoming::Close(frame.map_or(Closing { code: 1005, reason: String::new() }, |frame| Closing {
                        code: frame.code.into(),
                        reason: frame.reason.as_str().into(),
                    }))
                }
                Some(Ok(Message::Frame(_))) => continue,
                Some(Err(error)) => broken(&error),
                None => Incoming::Gone,
            };
            self.ended = matches!(incoming, Incoming::Close(_) | Incoming::Broken(_) | Incoming::Gone);
            return incoming;
        }
    }

    /// What the peer has said already, if it has.
    pub(super) fn ready(&mut self) -> Option<Incoming> {
        self.next().now_or_never()
    }

    /// Throws away what the peer still says, until it hangs up.
    pub(super) async fn drain(&mut self) {
        // Not on the stack: what stands there while this waits is part of every socket's task.
        let mut scrap = vec![0; 4_096];
        while let Ok(1..) = tokio::io::AsyncReadExt::read(&mut self.stream.get_mut().tcp, &mut scrap).await {}
    }
}

fn broken(error: &Error) -> Incoming {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => Incoming::Broken(CloseCode::TooBig),
        Error::Utf8(_) => Incoming::Broken(CloseCode::InvalidText),
        Error::Protocol(tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            Incoming::Gone
        }
        Error::Protocol(_) | Error::Capacity(_) => Incoming::Broken(CloseCode::Protocol),
        Error::Io(error) if error.kind() == io::ErrorKind::QuotaExceeded => Incoming::Broken(CloseCode::TooBig),
        _ => Incoming::Gone,
    }
}

/// What tungstenite reads from. What it writes goes nowhere.
struct Inlet {
    tcp: OwnedReadHalf,
    leftover: Bytes,
    since_message: usize,
    allowance: usize,
}

impl AsyncRead for Inlet {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.since_message > this.allowance {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        let before = buf.filled().len();
        if this.leftover.is_empty() {
            std::task::ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
        } else {
            let n = this.leftover.len().min(buf.remaining());
            buf.put_slice(&this.leftover[..n]);
            this.leftover.advance(n);
            if this.leftover.is_empty() {
                this.leftover = Bytes::new();
            }
        }
        this.since_message += buf.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Inlet {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
