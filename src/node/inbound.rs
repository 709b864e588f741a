//! The one loop that reads what other nodes send. It serves everyone, so it never waits and never fails.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bytes::Bytes;
use serde_json::json;

use super::{ClientMail, Node, ReplyTo};
use crate::{
    broker::{Deliveries, Delivery, Entry},
    hub::Heard,
    protocol::{Envelope, Event, EventKind, Mail, NodeId, PairId, RoomName, Topic},
};

impl Node {
    pub(super) async fn read_inbound(self: Arc<Self>, mut deliveries: Deliveries) {
        loop {
            let delivery = tokio::select! {
                delivery = deliveries.recv() => delivery,
                () = self.stopped.cancelled() => None,
            };
            match delivery {
                Some(Delivery::Message(Topic::Room(room), bytes)) => self.frames_arrived(&room, &bytes),
                Some(Delivery::Message(_, bytes)) => self.mail_arrived(&bytes),
                Some(Delivery::Entry(Topic::Pair(pair), entry)) => self.event_arrived(pair, &entry),
                Some(Delivery::Entry(topic, _)) => tracing::warn!(?topic, "an entry where none belongs"),
                Some(Delivery::Down) => self.broker_went(),
                Some(Delivery::Lost) => self.broker_came(),
                None => return,
            }
        }
    }

    fn frames_arrived(&self, room: &RoomName, bytes: &Bytes) {
        match Envelope::read(bytes) {
            // What this node published, it has delivered already.
            Ok(Envelope::Frames { from, run }) if from != self.id => {
                if let Some(room) = self.hub.room(room) {
                    room.fan_out(&run, None);
                }
            }
            Ok(_) => {}
            Err(why) => tracing::warn!(%room, why, "an envelope could not be read"),
        }
    }

    fn mail_arrived(self: &Arc<Self>, bytes: &Bytes) {
        match Envelope::read(bytes) {
            Ok(Envelope::Mail(Mail::Ask { number, from, pair, command, cause })) => {
                let reply = ReplyTo::Node(from, number);
                self.deliver(pair, ClientMail::Command { command, cause, reply });
            }
            Ok(Envelope::Mail(Mail::Yield { number, from, pair, to })) => {
                self.deliver(pair, ClientMail::Yield { to, reply: ReplyTo::Node(from, number) });
            }
            Ok(Envelope::Mail(Mail::Reply { number, outcome })) => self.complete(number, outcome),
            Ok(Envelope::Frames { .. }) => tracing::warn!("frames where mail belongs"),
            Err(why) => tracing::warn!(why, "an envelope could not be read"),
        }
    }

    fn event_arrived(&self, pair: PairId, entry: &Entry) {
        let Ok(event) = Event::decode(&entry.payload) else {
            // Kept by a newer version: whoever listens reads it again and is told that it can't be understood.
            return self.hub.tell(pair, &Heard::Lost);
        };
        match event.kind {
            EventKind::ClientOpened => {
                let node = event.data["node"].as_str().and_then(|node| node.parse::<NodeId>().ok());
                self.hub.set_home(pair, node);
            }
            EventKind::ClientClosed | EventKind::PairEnded => self.hub.set_home(pair, None),
            _ => {}
        }
        self.hub.tell(pair, &Heard::Event(Arc::new(event), entry.position, entry.previous));
    }

    fn broker_went(&self) {
        if self.reachable.swap(false, Relaxed) {
            tracing::warn!("the broker is lost");
            self.hub.tell_all(&Heard::Aside(EventKind::BrokerLost, Arc::new(json!({}))));
        }
    }

    fn broker_came(&self) {
        if !self.reachable.swap(true, Relaxed) {
            tracing::info!("the broker is back");
            self.hub.tell_all(&Heard::Aside(EventKind::BrokerRestored, Arc::new(json!({}))));
        }
        self.hub.tell_all(&Heard::Lost);
    }
}
