//! Where what came in through a lane is handed to the node.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::mpsc, time::timeout};

use super::{
    board::{Board, LaneId},
    message::{Said, read},
};
use crate::{
    broker::{Delivery, Entry},
    protocol::Topic,
};

/// How long a node that is slow to take deliveries is waited for. Meanwhile they wait in the socket, and then in
/// Redis, which would cut the connection in the end: so they are thrown away after this, and `Lost` says so.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Outlet {
    lane: LaneId,
    board: Arc<Board>,
    deliveries: mpsc::Sender<Delivery>,
    /// Something was thrown away, and the node has not been told yet. Until then everything else is, too.
    lossy: bool,
}

impl Outlet {
    pub(super) fn new(lane: LaneId, board: Arc<Board>, deliveries: &mpsc::WeakSender<Delivery>) -> Self {
        // If it is closed already, nobody listens any more.
        let deliveries = deliveries.upgrade().unwrap_or_else(|| mpsc::channel(1).0);
        Self { lane, board, deliveries, lossy: false }
    }

    /// Completes when the node takes nothing any more.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let deliveries = self.deliveries.clone();
        async move { deliveries.closed().await }
    }

    /// Completes when the node may take something.
    pub(super) fn has_room(&self) -> impl Future<Output = ()> + use<> {
        let deliveries = self.deliveries.clone();
        async move { drop(deliveries.reserve().await) }
    }

    pub(super) fn is_lossy(&self) -> bool {
        self.lossy
    }

    /// The node has been told that something is lost.
    pub(super) fn go_on(&mut self) {
        self.lossy = false;
    }

    /// Hands a message to the node, if it is wanted.
    pub(super) async fn pass(&mut self, channel: &str, message: Bytes) {
        if self.lossy {
            return;
        }
        // Not wanted any more, or not from this lane: the end of the subscription has overtaken it.
        let Some(topic) = self.board.topic(channel, self.lane) else { return };
        let Some(Said { entry, bytes }) = read(message) else {
            tracing::warn!(%channel, "a message was not understood");
            return;
        };
        let pass = |bytes: Bytes, topic: Topic| match entry {
            Some((position, previous)) => {
                self.deliveries.try_send(Delivery::Entry(topic, Entry { position, previous, payload: bytes }))
            }
            None => {
                let sent = self
                    .board
                    .admit(channel, bytes, |payload| self.deliveries.try_send(Delivery::Message(topic, payload)));
                sent.unwrap_or(Ok(()))
            }
        };
        let full = match pass(bytes.clone(), topic) {
            Err(mpsc::error::TrySendError::Full(delivery)) => delivery,
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return,
        };
        let (Delivery::Message(topic, _) | Delivery::Entry(topic, _)) = full else { return };
        // Looked at again after the wait, which another lane may have used.
        let waited = timeout(PATIENCE, self.deliveries.reserve()).await.map(drop);
        if waited.is_err() || matches!(pass(bytes, topic), Err(mpsc::error::TrySendError::Full(_))) {
            tracing::warn!("the node is too slow for its deliveries");
            self.lossy = true;
        }
    }
}
