//! The writing half of a WebSocket: bytes that are encoded already go onto the wire, as many in one write as wait.

use std::{cell::RefCell, collections::VecDeque, io, io::IoSlice};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::net::tcp::OwnedWriteHalf;

use crate::{hub::Outbox, protocol::Closing};

/// How much is taken from an outbox at a time: a control frame waits for at most this much data, and a write joins at
/// most this much.
const CHUNK: usize = 64 << 10;
/// How many chunks are written before the actor looks at everything else again.
const CHUNKS_A_TURN: usize = 4;
/// Pieces smaller than this on average are copied together: a copy of them costs less than a gather by the kernel.
const SMALL: usize = 4 << 10;
/// The most pieces that the kernel gathers in one write.
const PIECES: usize = 64;

thread_local! {
    /// Where small pieces are joined. One a thread, as no write is awaited while it is borrowed.
    static JOINED: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(CHUNK));
}

/// The writing half.
pub(super) struct Writer {
    tcp: OwnedWriteHalf,
    /// Whole frames on their way; the first may be written in part.
    chunk: VecDeque<Bytes>,
    /// Control frames go between data frames. A newer ping or pong takes the place of one that could not be written.
    ping: Option<Bytes>,
    pong: Option<Bytes>,
    close: Option<Bytes>,
    /// Bytes of the chunk's data that the outbox counts as queued.
    owed: usize,
    closed: bool,
    _permit: Box<dyn std::any::Any + Send + Sync>,
}

/// How far a flush went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Nothing waits any more.
    All,
    /// The kernel takes no more for now.
    Blocked,
    /// It had its turn: more waits, and the kernel may take more.
    Turn,
}

/// The writing half of a connection that is gone.
#[derive(Debug)]
pub(super) struct Disconnected;

fn control(opcode: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(2 + payload.len());
    frame.put_u8(0x80 | opcode);
    frame.put_u8(payload.len() as u8);
    frame.put_slice(payload);
    frame.freeze()
}

impl Writer {
    pub(super) fn new(tcp: OwnedWriteHalf, permit: Box<dyn std::any::Any + Send + Sync>) -> Self {
        let chunk = VecDeque::new();
        Self { tcp, chunk, ping: None, pong: None, close: None, owed: 0, closed: false, _permit: permit }
    }

    pub(super) fn ping(&mut self, payload: &[u8]) {
        self.ping = Some(control(0x9, payload));
    }

    pub(super) fn pong(&mut self, payload: &[u8]) {
        self.pong = Some(control(0xA, payload));
    }

    /// The last frame: it goes behind all data, and nothing follows it.
    pub(super) fn close(&mut self, closing: &Closing) {
        if self.closed || self.close.is_some() {
            return;
        }
        // 1005 and 1006 say that nothing was said.
        let mut payload = Vec::with_capacity(2 + closing.reason.len());
        if closing.code != 1005 && closing.code != 1006 {
            payload.put_u16(closing.code);
            payload.extend_from_slice(closing.reason.as_bytes());
        }
        self.close = Some(control(0x8, &payload));
    }

    /// Writes what waits, as far as the kernel takes it. Never waits.
    ///
    /// # Errors
    /// [`Disconnected`] when the peer is gone.
    pub(super) fn try_flush(&mut self, outbox: Option<&Outbox>) -> Result<Flushed, Disconnected> {
        for _ in 0..CHUNKS_A_TURN {
            if self.chunk.is_empty() && !self.load(outbox) {
                return Ok(Flushed::All);
            }
            match self.try_write() {
                Ok(0) => return Err(Disconnected),
                Ok(n) => self.advance(n, outbox),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Disconnected),
            }
        }
        Ok(Flushed::Turn)
    }

    /// Completes when the kernel may take more.
    ///
    /// # Errors
    /// [`Disconnected`] when the peer is gone.
    pub(super) async fn writable(&self) -> Result<(), Disconnected> {
        self.tcp.writable().await.map_err(|_| Disconnected)
    }

    /// Writes what waits; completes when nothing does. May be dropped while it waits.
    ///
    /// # Errors
    /// [`Disconnected`] when the peer is gone.
    pub(super) async fn flush(&mut self, outbox: Option<&Outbox>) -> Result<(), Disconnected> {
        while self.try_flush(outbox)? != Flushed::All {
            self.writable().await?;
        }
        Ok(())
    }

    /// Tells the peer's kernel that nothing follows.
    pub(super) async fn shut(&mut self) {
        drop(tokio::io::AsyncWriteExt::shutdown(&mut self.tcp).await);
    }

    fn load(&mut self, outbox: Option<&Outbox>) -> bool {
        if self.closed {
            return false;
        }
        self.chunk.extend(self.pong.take());
        self.chunk.extend(self.ping.take());
        if let Some(outbox) = outbox {
            let control = self.chunk.len();
            outbox.take(CHUNK, &mut self.chunk);
            self.owed = self.chunk.iter().skip(control).map(Bytes::len).sum();
        }
        if self.chunk.is_empty()
            && let Some(close) = self.close.take()
        {
            self.chunk.push_back(close);
            self.closed = true;
        }
        !self.chunk.is_empty()
    }

    fn try_write(&self) -> io::Result<usize> {
        if let [only] = self.chunk.as_slices().0
            && self.chunk.len() == 1
        {
            return self.tcp.try_write(only);
        }
        let bytes: usize = self.chunk.iter().take(PIECES).map(Bytes::len).sum();
        if bytes / self.chunk.len().min(PIECES) >= SMALL {
            let pieces: Vec<_> = self.chunk.iter().take(PIECES).map(|piece| IoSlice::new(piece)).collect();
            return self.tcp.try_write_vectored(&pieces);
        }
        JOINED.with_borrow_mut(|joined| {
            joined.clear();
            for piece in &self.chunk {
                if joined.len() + piece.len() > joined.capacity() {
                    break;
                }
                joined.extend_from_slice(piece);
            }
            if joined.is_empty() { self.tcp.try_write(&self.chunk[0]) } else { self.tcp.try_write(joined) }
        })
    }

    fn advance(&mut self, mut written: usize, outbox: Option<&Outbox>) {
        if let Some(outbox) = outbox {
            // The few control bytes in front are counted as data: the chunk's end settles it exactly.
            let paid = written.min(self.owed);
            self.owed -= paid;
            outbox.wrote(paid);
        }
        while let Some(front) = self.chunk.front_mut() {
            if front.len() > written {
                drop(front.split_to(written));
                return;
            }
            written -= front.len();
            self.chunk.pop_front();
        }
        if self.chunk.capacity() > PIECES {
            self.chunk = VecDeque::new();
        }
    }
}
