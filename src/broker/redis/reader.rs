//! The task that reads what was published and hands it to the node.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use fred::types::Message;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::live::Wanted;
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
    messages: broadcast::Receiver<Message>,
    signals: mpsc::Receiver<Signal>,
    deliveries: mpsc::Sender<Delivery>,
    wanted: Wanted,
    /// Between `Down` and `Lost` nothing is delivered: what came in then would be out of place.
    down: bool,
    /// Something was thrown away, and the node has not been told yet. Until then everything else is, too.
    lossy: bool,
}

impl Reader {
    pub(super) fn new(
        messages: broadcast::Receiver<Message>,
        signals: mpsc::Receiver<Signal>,
        deliveries: mpsc::Sender<Delivery>,
        wanted: Wanted,
    ) -> Self {
        Self { messages, signals, deliveries, wanted, down: false, lossy: false }
    }

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
                    drop(deliveries.send(Delivery::Down).await);
                }
                Some(Signal::Restored) => {
                    drop(deliveries.send(Delivery::Lost).await);
                    (self.down, self.lossy) = (false, false);
                }
                None => return false,
            },
            place = deliveries.reserve(), if self.lossy && !self.down => {
                if let Ok(place) = place {
                    place.send(Delivery::Lost);
                    self.lossy = false;
                }
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
        // Not wanted any more: the end of the subscription has overtaken it.
        let Some(topic) = self.wanted.read().get(&*message.channel).cloned() else { return };
        let Some(delivery) = message.value.into_bytes().and_then(|bytes| read(topic, bytes)) else {
            tracing::warn!(channel = %message.channel, "a message was not understood");
            return;
        };
        let Err(mpsc::error::TrySendError::Full(delivery)) = self.deliveries.try_send(delivery) else { return };
        if let Err(mpsc::error::SendTimeoutError::Timeout(_)) = self.deliveries.send_timeout(delivery, PATIENCE).await
        {
            self.lose(1);
        }
    }

    fn lose(&mut self, messages: u64) {
        tracing::warn!(messages, "the node is too slow for its deliveries");
        self.lossy = true;
    }
}

/// The first byte of a message that was published.
pub(super) const MESSAGE: u8 = b'm';
/// The first byte of a message that was appended; then position, space, previous, space.
const ENTRY: u8 = b'e';

/// Reads a message; its payload stays where it is.
fn read(topic: Topic, mut bytes: Bytes) -> Option<Delivery> {
    let kind = *bytes.first()?;
    bytes.advance(1);
    match kind {
        MESSAGE => Some(Delivery::Message(topic, bytes)),
        ENTRY => {
            let position = take_position(&mut bytes)?;
            let previous = take_position(&mut bytes)?;
            Some(Delivery::Entry(topic, Entry { position, previous, payload: bytes }))
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
    use crate::protocol::PairId;

    #[test]
    fn messages_are_read() {
        let topic = Topic::Pair(PairId::fresh());
        let of = |text: &'static str| read(topic.clone(), Bytes::from_static(text.as_bytes()));
        let Some(Delivery::Entry(_, entry)) = of("e2-18446744073709551615 1-7 a b") else { panic!("no entry") };
        assert_eq!(entry.position, Position { offset: 2, nonce: u64::MAX });
        assert_eq!((entry.previous.nonce, entry.payload.as_ref()), (7, b"a b".as_slice()));
        let Some(Delivery::Message(_, payload)) = of("m") else { panic!("no message") };
        assert!(payload.is_empty());
        for forged in ["", "e", "e1-2", "e1-2 ", "e1-2 3", "ex-2 1-1 ", "x1"] {
            assert!(of(forged).is_none(), "{forged}");
        }
    }
}
