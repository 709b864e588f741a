//! The task that reads what was published and hands it to the node.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use fred::types::Message;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    board::{Board, LaneId, MESSAGE},
    standing::Standing,
};
use crate::{
    broker::{Delivery, Entry},
    protocol::{Position, Topic},
};

/// How long a node that is slow to take deliveries is waited for. Meanwhile they wait in fred's queue, which counts
/// messages and not bytes: so rather than let it fill, they are thrown away after this, and `Lost` says so.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the keeper tells the reader.
pub(super) enum Signal {
    /// The connection is gone.
    Down,
    /// All subscriptions are in force again.
    Restored,
}

/// Waits for the keeper's signals, for messages, and for room in the deliveries.
pub(super) struct Reader {
    pub(super) lane: LaneId,
    pub(super) messages: broadcast::Receiver<Message>,
    pub(super) signals: mpsc::Receiver<Signal>,
    pub(super) deliveries: mpsc::Sender<Delivery>,
    pub(super) board: Arc<Board>,
    pub(super) standing: Arc<Standing>,
    /// Between `Down` and `Lost` nothing is delivered: what came in then would be out of place.
    pub(super) down: bool,
    /// Something was thrown away, and the node has not been told yet. Until then everything else is, too.
    pub(super) lossy: bool,
}

impl Reader {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let deliveries = self.deliveries.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = deliveries.closed() => {}
            () = async { while self.turn().await {} } => {}
        }
    }

    /// One turn; false when there is nothing more to read. Signals come first: a message that followed a signal must
    /// not be taken for one before it.
    async fn turn(&mut self) -> bool {
        let deliveries = self.deliveries.clone();
        tokio::select! {
            biased;
            signal = self.signals.recv() => match signal {
                Some(Signal::Down) => {
                    // What the old connection still brought comes before the news that it is gone.
                    while let Ok(message) = self.messages.try_recv() {
                        self.pass(message).await;
                    }
                    self.down = true;
                    self.standing.down(self.lane).await;
                }
                Some(Signal::Restored) => {
                    self.standing.back(self.lane).await;
                    (self.down, self.lossy) = (false, false);
                }
                None => return false,
            },
            place = deliveries.reserve(), if self.lossy && !self.down => {
                drop(place);
                self.standing.back(self.lane).await;
                self.lossy = false;
            }
            message = self.messages.recv() => match message {
                Ok(message) => self.pass(message).await,
                Err(broadcast::error::RecvError::Lagged(messages)) => self.lose(messages),
                Err(broadcast::error::RecvError::Closed) => return false,
            },
        }
        true
    }

    async fn pass(&mut self, message: Message) {
        if self.down || self.lossy {
            return;
        }
        // Not wanted any more, or not from this lane: the end of the subscription has overtaken it.
        let Some(topic) = self.board.topic(&message.channel, self.lane) else { return };
        let Some(Said { entry, bytes }) = message.value.into_bytes().and_then(read) else {
            tracing::warn!(channel = %message.channel, "a message was not understood");
            return;
        };
        let pass = |bytes: Bytes, topic: Topic| match entry {
            Some((position, previous)) => {
                self.deliveries.try_send(Delivery::Entry(topic, Entry { position, previous, payload: bytes }))
            }
            None => {
                let sent = self.board.admit(&message.channel, bytes, |payload| {
                    self.deliveries.try_send(Delivery::Message(topic, payload))
                });
                sent.unwrap_or(Ok(()))
            }
        };
        let full = match pass(bytes.clone(), topic) {
            Err(mpsc::error::TrySendError::Full(delivery)) => delivery,
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return,
        };
        let (Delivery::Message(topic, _) | Delivery::Entry(topic, _)) = full else { return };
        // Looked at again after the wait, which another lane may have used.
        let waited = tokio::time::timeout(PATIENCE, self.deliveries.reserve()).await.map(drop);
        if waited.is_err() || matches!(pass(bytes, topic), Err(mpsc::error::TrySendError::Full(_))) {
            self.lose(1);
        }
    }

    fn lose(&mut self, messages: u64) {
        tracing::warn!(messages, "the node is too slow for its deliveries");
        self.lossy = true;
    }
}

/// The first byte of a message that was appended; then position, space, previous, space.
const ENTRY: u8 = b'e';

/// What a message is.
struct Said {
    /// Position and previous of an entry; `None` for what was published.
    entry: Option<(Position, Position)>,
    /// The payload; with the sender's stamp before it, if it was published.
    bytes: Bytes,
}

/// Reads a message; its payload stays where it is.
fn read(mut bytes: Bytes) -> Option<Said> {
    let kind = *bytes.first()?;
    bytes.advance(1);
    match kind {
        MESSAGE => Some(Said { entry: None, bytes }),
        ENTRY => {
            let position = take_position(&mut bytes)?;
            let previous = take_position(&mut bytes)?;
            Some(Said { entry: Some((position, previous)), bytes })
        }
        _ => None,
    }
}

fn take_position(bytes: &mut Bytes) -> Option<Position> {
    // Two numbers of twenty digits at most, and a dash.
    let end = bytes.iter().take(42).position(|byte| *byte == b' ')?;
    let text = bytes.split_to(end + 1);
    std::str::from_utf8(&text[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read() {
        let of = |text: &'static str| read(Bytes::from_static(text.as_bytes()));
        let Some(Said { entry: Some((position, previous)), bytes }) = of("e2-18446744073709551615 1-7 a b") else {
            panic!("no entry")
        };
        assert_eq!(position, Position { offset: 2, nonce: u64::MAX });
        assert_eq!((previous.nonce, bytes.as_ref()), (7, b"a b".as_slice()));
        let Some(Said { entry: None, bytes }) = of("nstamp") else { panic!("no message") };
        assert_eq!(bytes, "stamp");
        for forged in ["", "e", "e1-2", "e1-2 ", "e1-2 3", "ex-2 1-1 ", "x1"] {
            assert!(of(forged).is_none(), "{forged}");
        }
    }
}
