//! The reading half of a WebSocket: bytes come from the connection, and `frames` says what they mean.
//!
//! An idle socket has no buffer: one is made when there is something to read, and what is left of it when a message has
//! not come as a whole is all that is kept.

use std::{
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::{io::AsyncReadExt as _, net::tcp::OwnedReadHalf};

use super::frames::Decoder;
use crate::protocol::{CloseCode, Closing, FrameKind};

/// How much is read at a time, as long as that is all there is.
const READ_BUFFER: usize = 16 << 10;
/// The most that is read at a time, and that memory is made for before it is read: a peer that announces much has not
/// sent it.
const AHEAD: usize = 64 << 10;
/// The beginning of a message is moved out of the buffer when it is shorter than this and more has to be waited for.
const SHORT: usize = 1 << 10;

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
    tcp: OwnedReadHalf,
    /// What was read and not said yet.
    wire: BytesMut,
    decoder: Decoder,
    /// The last read filled all that it was given: there is more.
    eager: bool,
    ended: bool,
}

impl Reader {
    /// Reads messages of at most `limit` bytes, the first out of what came behind the handshake.
    pub(super) fn new(tcp: OwnedReadHalf, leftover: &[u8], limit: usize) -> Self {
        Self { tcp, wire: leftover.into(), decoder: Decoder::new(limit), eager: false, ended: false }
    }

    /// What the peer says next. May be dropped while it waits.
    pub(super) fn next(&mut self) -> impl Future<Output = Incoming> + '_ {
        std::future::poll_fn(|cx| self.poll_next(cx))
    }

    /// What the peer has said already, if it has.
    pub(super) fn ready(&mut self) -> Option<Incoming> {
        self.next().now_or_never()
    }

    /// How many bytes have been read and not been said yet.
    pub(super) fn waiting(&self) -> usize {
        self.wire.len()
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        while !self.ended {
            let incoming = match self.decoder.next(&mut self.wire) {
                Ok(incoming) => incoming,
                Err(missing) => match ready!(self.poll_read(cx, missing)) {
                    true => continue,
                    false => Incoming::Gone,
                },
            };
            self.ended = matches!(incoming, Incoming::Close(_) | Incoming::Broken(_) | Incoming::Gone);
            return Poll::Ready(incoming);
        }
        Poll::Pending
    }

    /// Reads more, for something that takes so many bytes. False when nothing comes any more.
    fn poll_read(&mut self, cx: &mut Context<'_>, missing: usize) -> Poll<bool> {
        loop {
            if self.tcp.as_ref().poll_read_ready(cx).is_pending() {
                self.rest();
                return Poll::Pending;
            }
            self.wire.reserve(if self.eager { AHEAD } else { missing.clamp(READ_BUFFER, AHEAD) });
            let room = self.wire.capacity() - self.wire.len();
            // Unlike an attempt to read, this knows without asking the kernel again when all is read.
            if let Poll::Ready(read) = pin!(self.tcp.read_buf(&mut self.wire)).poll(cx) {
                self.eager = matches!(read, Ok(n) if n == room);
                return Poll::Ready(read.is_ok_and(|n| n > 0));
            }
        }
    }

    /// It has to wait: nothing is kept but what a message has begun with.
    fn rest(&mut self) {
        if self.wire.len() < SHORT {
            self.wire = self.wire.as_ref().into();
        }
    }

    /// Throws away what the peer still says, until it hangs up.
    pub(super) async fn drain(&mut self) {
        // Not on the stack: what stands there while this waits is part of every socket's task.
        let mut scrap = vec![0; 4_096];
        while let Ok(1..) = self.tcp.read(&mut scrap).await {}
    }
}
