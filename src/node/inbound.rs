//! The one loop that reads what other nodes send. It serves everyone, so it never waits and never fails.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bytes::Bytes;
use serde_json::json;
use tokio::time::{Duration, Instant};

use super::{ClientMail, Node, ReplyTo, ask::busy, asked::Heard as Known, follow::piece, sweep::SWEEPS};
use crate::{
    broker::{Deliveries, Delivery, Entry},
    hub::{Heard, Source},
    protocol::{Command, Envelope, EventKind, Mail, NodeId, Reply, RoomName, Topic},
};

/// How the broker does, from the two sides that this node sees of it.
pub(super) struct BrokerState {
    delivers: bool,
    answers: bool,
    /// When live deliveries were last interrupted, or the lease was lost.
    shaken: Option<Instant>,
}

/// How long after an interruption those who hold something may take to tell the broker again what it has lost.
const HEALING: Duration = Duration::from_secs(6);

impl BrokerState {
    pub(super) const GOOD: Self = Self { delivers: true, answers: true, shaken: None };

    fn good(&self) -> bool {
        self.delivers && self.answers
    }
}

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
                Some(Delivery::Entry(Topic::Cluster, entry)) => self.chronicle.hear(&entry),
                Some(Delivery::Entry(topic, entry)) => self.entry_arrived(&topic, entry),
                Some(Delivery::Down) => self.broker_delivers(false),
                Some(Delivery::Lost) => self.broker_delivers(true),
                None => return,
            }
        }
    }

    fn frames_arrived(self: &Arc<Self>, name: &RoomName, bytes: &Bytes) {
        let room = || self.hub.room(name);
        match Envelope::read(bytes) {
            Ok(Envelope::Frames { from, run }) => {
                if let Some((source, room)) = self.source(Some(from)).zip(room()) {
                    room.fan_out(&run, source, None);
                }
            }
            Ok(Envelope::Ordered { except, run }) => {
                if let Some(room) = room() {
                    room.fan_out(&run, Source::Abroad, except);
                }
            }
            Ok(Envelope::Mark { from, mark }) => {
                if let Some((source, room)) = self.source(from).zip(room()) {
                    room.fan_out_mark(&Arc::new(mark), source);
                }
            }
            Ok(Envelope::Notice(notice)) => self.noticed(name, notice),
            Ok(_) => {}
            Err(why) => tracing::warn!(room = %name, why, "an envelope could not be read"),
        }
    }

    /// What this node published it has delivered already, and nobody else is to have it, but an outbox that is just
    /// coming here.
    fn source(&self, from: Option<NodeId>) -> Option<Source> {
        match from == Some(self.id) {
            true => self.expects_crossing().then_some(Source::Back),
            false => Some(Source::Abroad),
        }
    }

    fn mail_arrived(self: &Arc<Self>, bytes: &Bytes) {
        match Envelope::read(bytes) {
            Ok(Envelope::Mail(Mail::Ask { number, from, pair, command, cause })) => {
                let reply = ReplyTo::Node(from, number);
                let (wait, ask) = (command.wait(), (from, number));
                let heard = match command.changes_nothing() {
                    true => Known::First,
                    // Remembered apart: the many that come again soon or never are not to be kept as long.
                    false if wait > Duration::ZERO => {
                        self.asked_to_wait.hear(ask, self.settings.command_timeout * 2 + wait)
                    }
                    false => self.asked.hear(ask, self.settings.command_timeout * 2),
                };
                match heard {
                    Known::First => match command {
                        Command::Unpark { room, epoch, received } => {
                            self.unpark(pair, (&room, epoch), received, (from, number));
                        }
                        command => self.deliver(pair, ClientMail::Command { command, cause, reply }),
                    },
                    Known::Running => {}
                    Known::Replied(outcome) => self.post(from, &Mail::Reply { number, outcome }),
                    Known::TooMany => self.reply(reply, Reply::Failed(busy())),
                }
            }
            Ok(Envelope::Mail(Mail::Yield { number, from, pair, held })) => {
                let reply = ReplyTo::Node(from, number);
                match self.asked.hear((from, number), self.settings.command_timeout * 2) {
                    Known::First => self.deliver(pair, ClientMail::Yield { held, reply }),
                    // Slow is not silent: whoever waits is to know that this node lives.
                    Known::Running | Known::TooMany => {
                        self.post(from, &Mail::Reply { number, outcome: Reply::Again });
                    }
                    Known::Replied(outcome) => self.post(from, &Mail::Reply { number, outcome }),
                }
            }
            Ok(Envelope::Mail(Mail::Crossing { number, items })) => self.crossed(number, items),
            Ok(Envelope::Mail(Mail::Reply { number, outcome })) if self.tallies.contains_key(&number) => {
                self.counted_there(number, &outcome);
            }
            Ok(Envelope::Mail(Mail::Reply { number, outcome })) => self.complete(number, outcome),
            Ok(_) => tracing::warn!("something else where mail belongs"),
            Err(why) => tracing::warn!(why, "an envelope could not be read"),
        }
    }

    fn entry_arrived(self: &Arc<Self>, topic: &Topic, entry: Entry) {
        let piece = Arc::new(piece(entry));
        if let Some(event) = piece.event().filter(|event| event.kind == EventKind::Signal) {
            self.answer_count(topic, event);
        }
        if let (Topic::Pair(pair), Some(event)) = (topic, piece.event()) {
            match event.kind {
                EventKind::ClientOpened => {
                    let node = event.data()["node"].as_str().and_then(|node| node.parse::<NodeId>().ok());
                    self.hub.set_home(*pair, node);
                }
                EventKind::ClientClosed | EventKind::PairEnded => self.hub.set_home(*pair, None),
                _ => {}
            }
        }
        self.hub.tell(topic, &Heard::Piece(piece));
    }

    /// Live traffic stopped, or goes on: whoever listens reads what was missed. A client socket may have missed that it
    /// was asked to yield, and its story may have lost its end, if there is another primary.
    fn broker_delivers(self: &Arc<Self>, delivers: bool) {
        self.broker_state(|state| state.delivers = delivers);
        self.broker_shaken();
        self.end_crossings();
        if delivers {
            self.hub.tell_all(&Heard::Lost);
            self.look_at_rooms();
            self.chronicle.read_again();
            self.sweeps.store(SWEEPS, Relaxed);
            for (pair, _) in self.hub.clients() {
                self.leave_mail(pair, ClientMail::LookAgain);
            }
        }
    }

    /// The registry took the node's beat, or did not.
    pub(super) fn broker_answers(&self, answers: bool) {
        self.broker_state(|state| state.answers = answers);
    }

    /// Whether the registry did not take the last beat.
    pub(super) fn broker_is_silent(&self) -> bool {
        !self.broker_state.lock().answers
    }

    /// Siblings hear when the broker is lost and when it is back: in which way it failed does not matter to them.
    fn broker_state(&self, change: impl FnOnce(&mut BrokerState)) {
        let mut state = self.broker_state.lock();
        let before = state.good();
        change(&mut state);
        match (before, state.good()) {
            (true, false) => {
                tracing::warn!("the broker is lost");
                self.hub.tell_all(&Heard::Aside(EventKind::BrokerLost, Arc::new(json!({}))));
            }
            (false, true) => {
                tracing::info!("the broker is back");
                self.hub.tell_all(&Heard::Aside(EventKind::BrokerRestored, Arc::new(json!({}))));
            }
            _ => {}
        }
    }

    pub(super) fn broker_shaken(&self) {
        self.broker_state.lock().shaken = Some(Instant::now());
    }

    /// Whether the broker was away a moment ago, so that it may not know yet what it will be told again.
    pub(super) fn broker_is_healing(&self) -> bool {
        let state = self.broker_state.lock();
        !state.good() || state.shaken.is_some_and(|since| since.elapsed() < HEALING.max(self.settings.lease))
    }

    /// Whether the broker could be reached when it was last tried.
    #[must_use]
    pub fn broker_reachable(&self) -> bool {
        self.broker_state.lock().good()
    }
}
