//! Farewells: the close handshake, for peers that answer, that do not, and that do not even read.

use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use super::{
    read::{Incoming, Reader},
    write::Writer,
};
use crate::hub::Outbox;

/// A peer that does not take what is still queued for it within this is jammed: nobody waits for it.
const JAMMED: Duration = Duration::from_millis(100);
/// How long the peer may take to answer a close that it has received.
const ANSWER: Duration = Duration::from_millis(500);
/// How long the connection of a peer that does not answer is kept, so that the close may still reach it.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

/// Says goodbye with the close frame that the writer has been given, behind what is queued, and waits a moment for
/// the answer. True when the close handshake was completed.
pub(super) async fn say(reader: &mut Reader, writer: &mut Writer, outbox: Option<&Outbox>) -> bool {
    let mut flushed = false;
    let mut deadline = Instant::now() + JAMMED;
    loop {
        tokio::select! {
            result = writer.flush(outbox), if !flushed => match result {
                Ok(()) => {
                    flushed = true;
                    deadline = Instant::now() + ANSWER;
                }
                Err(_) => return false,
            },
            incoming = reader.next() => match incoming {
                // Its close may have crossed ours.
                Incoming::Close(_) => return true,
                Incoming::Gone | Incoming::Broken(_) => return false,
                _ => {}
            },
            () = sleep_until(deadline) => return false,
        }
    }
}

/// Hangs up: what could not be written yet gets some more time, and what the peer still sends is taken from it, since
/// closing over unread bytes would reset the connection and could destroy the close frame on its way.
pub(super) async fn hang_up(reader: &mut Reader, writer: &mut Writer, outbox: Option<&Outbox>, longest: Duration) {
    let deadline = Instant::now() + longest;
    tokio::select! {
        _ = timeout_at(deadline, writer.flush(outbox)) => {}
        () = reader.drain() => {}
    }
    writer.shut().await;
    drop(timeout_at(deadline.min(Instant::now() + ANSWER), reader.drain()).await);
}

/// Both, one after the other.
pub(super) async fn part(
    reader: &mut Reader,
    writer: &mut Writer,
    outbox: Option<&Outbox>,
    longest: Duration,
) -> bool {
    let clean = say(reader, writer, outbox).await;
    hang_up(reader, writer, outbox, if clean { ANSWER } else { longest }).await;
    clean
}
