//! The writing half of a WebSocket: bytes that are encoded already go onto the wire, as many in one write as wait.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io,
    io::IoSlice,
    sync::{Arc, Weak},
};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::net::tcp::OwnedWriteHalf;

pub(super) use crate::hub::{Disconnected, Flushed};
use crate::{
    hub::{Outbox, Wire},
    protocol::Closing,
};

/// How much is taken from an outbox at a time: a control frame waits for at most this much data, and a write joins at
/// most this much. It is what the kernel sends as one segment, which the network card cuts up: a few bytes more are a
/// second one, and cost nearly as much as all the others (measured: a third of what 16 KiB frames cost).
pub(super) const CHUNK: usize = 65_000;
/// How many chunks are written before the actor looks at everything else again.
const CHUNKS_A_TURN: usize = 4;
/// Pieces smaller than this on average are copied together: a copy of them costs less than a gather by the kernel.
const SMALL: usize = 4 << 10;
/// The most pieces that the kernel gathers in one write.
const PIECES: usize = 64;
/// For how many pieces room is kept between two chunks.
const MOST_SPARE: usize = 1_024;

thread_local! {
    /// Where small pieces are joined. One a thread, as no write is awaited while it is borrowed.
    static JOINED: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(CHUNK));
    /// Where a chunk stands while it is written, unless a part of it has to wait: idle sockets keep nothing.
    static SPARE: RefCell<VecDeque<Bytes>> = const { RefCell::new(VecDeque::new()) };
}

/// The writing half, as its socket's actor has it. What is queued may be written through [`Writer::wire`] as well.
pub(super) struct Writer {
    pen: Arc<Pen>,
}

/// Held by one writer at a time, so that frames stay whole and in order.
struct Pen {
    tcp: OwnedWriteHalf,
    sheet: Mutex<Sheet>,
    _permit: Box<dyn std::any::Any + Send + Sync>,
}

/// What is being written.
#[derive(Default)]
struct Sheet {
    /// Whole frames on their way; the first may be written in part.
    chunk: VecDeque<Bytes>,
    /// What goes between data frames, if there is anything.
    control: Option<Box<Control>>,
    /// Bytes of the chunk's data that the outbox counts as queued.
    owed: usize,
    closed: bool,
}

/// Control frames. A newer ping or pong takes the place of one that could not be written.
#[derive(Default)]
struct Control {
    ping: Option<Bytes>,
    pong: Option<Bytes>,
    close: Option<Bytes>,
}

fn control(opcode: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(2 + payload.len());
    frame.put_u8(0x80 | opcode);
    frame.put_u8(payload.len() as u8);
    frame.put_slice(payload);
    frame.freeze()
}

impl Writer {
    pub(super) fn new(tcp: OwnedWriteHalf, permit: Box<dyn std::any::Any + Send + Sync>) -> Self {
        Self { pen: Arc::new(Pen { tcp, sheet: Mutex::default(), _permit: permit }) }
    }

    /// Where postmen may put what is queued.
    pub(super) fn wire(&self) -> Weak<dyn Wire> {
        let pen: Arc<dyn Wire> = Arc::clone(&self.pen) as _;
        Arc::downgrade(&pen)
    }

    pub(super) fn ping(&mut self, payload: &[u8]) {
        self.pen.sheet.lock().control().ping = Some(control(0x9, payload));
    }

    pub(super) fn pong(&mut self, payload: &[u8]) {
        self.pen.sheet.lock().control().pong = Some(control(0xA, payload));
    }

    /// The last frame: it goes behind all data, and nothing follows it.
    pub(super) fn close(&mut self, closing: &Closing) {
        let mut sheet = self.pen.sheet.lock();
        if sheet.closed || sheet.control.as_ref().is_some_and(|control| control.close.is_some()) {
            return;
        }
        // 1005 and 1006 say that nothing was said.
        let mut payload = Vec::with_capacity(2 + closing.reason.len());
        if closing.code != 1005 && closing.code != 1006 {
            payload.put_u16(closing.code);
            payload.extend_from_slice(closing.reason.as_bytes());
        }
        sheet.control().close = Some(control(0x8, &payload));
    }

    /// Writes what waits, as far as the kernel takes it. Never waits.
    ///
    /// # Errors
    /// [`Disconnected`] when the peer is gone.
    pub(super) fn try_flush(&mut self, outbox: Option<&Outbox>) -> Result<Flushed, Disconnected> {
        self.pen.try_flush(outbox)
    }

    /// Completes when the kernel may take more.
    ///
    /// # Errors
    /// [`Disconnected`] when the peer is gone.
    pub(super) fn writable(&self) -> impl Future<Output = Result<(), Disconnected>> + '_ {
        poll_fn(|cx| self.pen.tcp.as_ref().poll_write_ready(cx).map_err(|_| Disconnected))
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
        // Nobody else has it when the actor is about to end.
        if let Some(pen) = Arc::get_mut(&mut self.pen) {
            drop(tokio::io::AsyncWriteExt::shutdown(&mut pen.tcp).await);
        }
    }
}

impl Wire for Pen {
    fn flush(&self, outbox: &Outbox) -> Result<Flushed, Disconnected> {
        self.try_flush(Some(outbox))
    }
}

impl Pen {
    fn try_flush(&self, outbox: Option<&Outbox>) -> Result<Flushed, Disconnected> {
        let sheet = &mut *self.sheet.lock();
        SPARE.with_borrow_mut(|spare| {
            if sheet.chunk.is_empty() {
                sheet.chunk = std::mem::take(spare);
            }
            let flushed = self.write(sheet, outbox);
            if sheet.chunk.is_empty() {
                *spare = std::mem::take(&mut sheet.chunk);
                spare.shrink_to(MOST_SPARE);
            }
            flushed
        })
    }

    fn write(&self, sheet: &mut Sheet, outbox: Option<&Outbox>) -> Result<Flushed, Disconnected> {
        for _ in 0..CHUNKS_A_TURN {
            if sheet.chunk.is_empty() && !sheet.load(outbox) {
                return Ok(Flushed::All);
            }
            match sheet.try_write(&self.tcp) {
                Ok(0) => return Err(Disconnected),
                Ok(n) => {
                    if !sheet.advance(n, outbox) {
                        return Ok(Flushed::All);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Disconnected),
            }
        }
        Ok(Flushed::Turn)
    }
}

impl Sheet {
    fn control(&mut self) -> &mut Control {
        self.control.get_or_insert_default()
    }

    fn load(&mut self, outbox: Option<&Outbox>) -> bool {
        if self.closed {
            return false;
        }
        let mut close = None;
        if let Some(control) = self.control.take() {
            self.chunk.extend(control.pong);
            self.chunk.extend(control.ping);
            close = control.close;
        }
        if let Some(outbox) = outbox {
            let control = self.chunk.len();
            outbox.take(CHUNK, &mut self.chunk);
            self.owed = self.chunk.iter().skip(control).map(Bytes::len).sum();
        }
        if let Some(close) = close {
            // Behind everything else.
            if self.chunk.is_empty() {
                self.chunk.push_back(close);
                self.closed = true;
            } else {
                self.control().close = Some(close);
            }
        }
        !self.chunk.is_empty()
    }

    fn try_write(&self, tcp: &OwnedWriteHalf) -> io::Result<usize> {
        if let [only] = self.chunk.as_slices().0
            && self.chunk.len() == 1
        {
            return tcp.try_write(only);
        }
        let bytes: usize = self.chunk.iter().take(PIECES).map(Bytes::len).sum();
        if bytes / self.chunk.len().min(PIECES) >= SMALL {
            let pieces: Vec<_> = self.chunk.iter().take(PIECES).map(|piece| IoSlice::new(piece)).collect();
            return tcp.try_write_vectored(&pieces);
        }
        JOINED.with_borrow_mut(|joined| {
            joined.clear();
            for piece in &self.chunk {
                if joined.len() + piece.len() > joined.capacity() {
                    break;
                }
                joined.extend_from_slice(piece);
            }
            if joined.is_empty() { tcp.try_write(&self.chunk[0]) } else { tcp.try_write(joined) }
        })
    }

    /// So many bytes are written. True when more waits, or may.
    fn advance(&mut self, mut written: usize, outbox: Option<&Outbox>) -> bool {
        let mut more = self.control.is_some();
        if let Some(outbox) = outbox {
            // The few control bytes in front are counted as data: the chunk's end settles it exactly.
            let paid = written.min(self.owed);
            self.owed -= paid;
            more |= outbox.wrote(paid);
        }
        while let Some(front) = self.chunk.front_mut() {
            if front.len() > written {
                drop(front.split_to(written));
                return true;
            }
            written -= front.len();
            self.chunk.pop_front();
        }
        more
    }
}
