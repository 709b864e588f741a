//! Floor 3: one actor per socket.
//!
//! `read` and `write` are the two halves of a WebSocket: the reader makes messages of what arrives (`frames` guards the
//! protocol), the writer puts bytes that were encoded elsewhere onto the wire. `client` is the actor of a client socket, the pure
//! pipe; `sibling` that of a sibling socket; `calls` carries out what siblings ask for, over any transport.

mod calls;
mod client;
mod discover;
mod ending;
mod farewell;
mod frames;
mod heartbeat;
mod inflow;
mod jobs;
mod kept;
mod marks;
mod orders;
mod pace;
mod pipe;
mod read;
mod sending;
mod sibling;
mod switch;
mod terms;
mod write;

use bytes::Bytes;
use tokio::net::TcpStream;

pub use calls::{Caller, Calls, standing, trace_id};
pub use client::{Service, serve_client};
pub use discover::open_rpc;
pub use read::Incoming;
pub use sibling::{SiblingSocket, serve_sibling};

use read::Reader;
use write::Writer;

/// A TCP connection on which a WebSocket handshake has just been answered.
pub struct Upgraded {
    /// The connection.
    pub tcp: TcpStream,
    /// What was read from it beyond the handshake.
    pub leftover: Bytes,
    /// Kept for as long as the connection: its place among those that are allowed.
    pub permit: Box<dyn std::any::Any + Send + Sync>,
}

/// The two halves of a WebSocket.
struct Halves {
    reader: Reader,
    writer: Writer,
}

impl Upgraded {
    /// The two halves, for messages of at most `limit` bytes.
    fn split(self, limit: usize) -> Halves {
        let (read, write) = self.tcp.into_split();
        Halves { reader: Reader::new(read, &self.leftover, limit), writer: Writer::new(write, self.permit) }
    }

    /// Tells the peer why it is refused, where it could not have seen an HTTP status.
    pub async fn refuse(self, closing: &crate::protocol::Closing) {
        let Halves { mut reader, mut writer } = self.split(1_024);
        writer.close(closing);
        farewell::part(&mut reader, &mut writer, None, farewell::LONGEST).await;
    }
}
