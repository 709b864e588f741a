//! Commands about what is kept of a pair: what its siblings are told of its room, and up to where they have dealt with
//! its events. While it has a client socket, that one's actor has the only true copy, and carries them out; else
//! whichever node is asked does.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Facts, Found, Line, Node,
    ask::{BETWEEN_LOOKS, detached, timed_out},
    story::draft,
};
use crate::{
    broker::BrokerError,
    protocol::{
        Cause, Command, Cursor, Event, EventKind, Failure, Fault, PairId, Place, Position, TicketKeys, Topic,
        Watching, read_cursor,
    },
};

/// How many entries of a room's talk are looked through for those that nobody has dealt with.
const MOST: usize = 1_000;

impl Node {
    /// Carries out a command about what is kept of a pair.
    ///
    /// # Errors
    /// [`Fault::Gone`] after the pair's end, [`Fault::NotFound`] for an unknown pair or another's cursor,
    /// [`Fault::Timeout`], or when the broker can't be reached.
    pub async fn note(
        self: &Arc<Self>,
        pair: PairId,
        command: Command,
        cause: Cause,
        line: &Line,
    ) -> Result<Value, Failure> {
        let done = self.note_somewhere(pair, command, cause, line).await?;
        let Some(acked) = acked_in(&done) else { return Ok(done) };
        self.broker.trim(&Topic::Pair(pair), acked.pair).await?;
        Ok(json!({"unread": self.unread(pair, &acked).await?}))
    }

    async fn note_somewhere(
        self: &Arc<Self>,
        pair: PairId,
        command: Command,
        cause: Cause,
        line: &Line,
    ) -> Result<Value, Failure> {
        let deadline = Instant::now() + self.settings.command_timeout;
        while Instant::now() < deadline {
            match self.ask(pair, command.clone(), cause.clone(), line).await {
                Err(failure) if failure.fault == Fault::ClientDetached => {}
                done => return done,
            }
            let (node, key, name) = (Arc::clone(self), cause.key.clone(), command.name());
            let (again, cause) = (command.clone(), cause.clone());
            match self.once(pair, key, name, async move { node.note_detached(pair, &again, cause).await }).await {
                // One has opened meanwhile.
                Err(failure) if failure.fault == Fault::ClientDetached => sleep(BETWEEN_LOOKS).await,
                done => return done,
            }
        }
        Err(timed_out())
    }

    async fn note_detached(&self, pair: PairId, command: &Command, cause: Cause) -> Result<Value, Failure> {
        let Found { record, mut facts } = self.find_pair(pair).await?;
        if record.holder.is_some() {
            return Err(detached());
        }
        let Noted { reply, told } = facts.note(pair, command, &self.settings.ticket_keys)?;
        if !self.registry.revise(pair, record.fence, facts.write()?).await? {
            return Err(detached());
        }
        if told {
            let data = json!({"watching": facts.watching, "meta": facts.meta});
            let drafts = [draft(EventKind::ClientChanged, data, Some(cause))];
            self.registry.tell(pair, &drafts, &self.settings.keep).await?;
        }
        Ok(reply)
    }

    /// How many events a pair's siblings have not dealt with: those in its own history, and those that they are told of
    /// its room, of which at most a thousand are looked through.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn unread(&self, pair: PairId, acked: &Place) -> Result<u64, Failure> {
        let topic = Topic::Pair(pair);
        let own = self.broker.heads(std::slice::from_ref(&topic));
        let talk = async {
            let Some((room, at)) = &acked.room else { return Ok(Vec::new()) };
            Ok::<_, BrokerError>(self.broker.read(&Topic::Talk(room.clone()), *at, MOST).await?.entries)
        };
        let (heads, talk) = tokio::try_join!(own, talk)?;
        let own = heads.first().map_or(0, |head| head.offset.saturating_sub(acked.pair.offset));
        let told = talk
            .iter()
            .filter(|entry| Event::decode(&entry.payload).is_ok_and(|event| is_told(&event, pair, acked.watching)));
        Ok(own + told.count() as u64)
    }

    /// Puts the number of events that were not dealt with into a pair's state, in the place of where that stands.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn count_unread(&self, pair: PairId, state: &mut Value) -> Result<(), Failure> {
        let acked = serde_json::from_value::<Option<Place>>(state["unread"].take()).unwrap_or_default();
        if let Some(acked) = acked {
            state["unread"] = self.unread(pair, &acked).await?.into();
        }
        Ok(())
    }
}

/// What came of such a command.
pub struct Noted {
    /// The reply to it.
    pub reply: Value,
    /// Whether the pair's siblings are told that something has changed.
    pub told: bool,
}

impl Facts {
    /// Changes what a command about it changes.
    ///
    /// # Errors
    /// [`Fault::NotFound`] for a cursor that is not this pair's.
    pub fn note(&mut self, pair: PairId, command: &Command, keys: &TicketKeys) -> Result<Noted, Failure> {
        match command {
            Command::Watch(params) => self.watching = params.change(self.watching, true),
            Command::Unwatch(params) => self.watching = params.change(self.watching, false),
            Command::Ack(params) => {
                let cursor = read_cursor(pair, &params.cursor, keys)
                    .map_err(|bad| Failure::new(Fault::NotFound, format!("cursor: {bad}")))?;
                let place = match cursor {
                    Cursor::Place(place) => place,
                    Cursor::First(pair) => Place { pair, room: None, watching: self.watching },
                    Cursor::Start => {
                        Place { pair: Position::START, room: self.first.clone(), watching: Watching::default() }
                    }
                };
                let place =
                    self.acked.take().filter(|acked| is_behind(&place, acked)).unwrap_or_else(|| Box::new(place));
                self.acked = Some(place.clone());
                return Ok(Noted { reply: json!({ "acked": place }), told: false });
            }
            _ => {}
        }
        Ok(Noted { reply: json!(self.watching), told: true })
    }
}

/// Whether a place comes before another, or is the same.
fn is_behind(place: &Place, other: &Place) -> bool {
    let talk = match (&place.room, &other.room) {
        (Some((room, at)), Some((other, there))) if room == other => at.offset <= there.offset,
        _ => true,
    };
    place.pair.offset < other.pair.offset || place.pair.offset == other.pair.offset && talk
}

/// Where an acknowledgement stands, if that is what was done.
fn acked_in(reply: &Value) -> Option<Place> {
    serde_json::from_value(reply.get("acked")?.clone()).ok()
}

/// Whether what is said in its room is told to a pair's siblings.
pub(super) fn is_told(event: &Event, pair: PairId, watching: Watching) -> bool {
    !event.is_of(pair)
        && match event.kind {
            EventKind::PeerJoined | EventKind::PeerLeft => watching.joins,
            EventKind::Signal => watching.signals,
            _ => true,
        }
}
