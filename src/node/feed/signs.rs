//! Where a pair stands: what its record, and the events of its story, say of its room and of what it watches.

use std::sync::Arc;

use serde::Deserialize as _;
use tokio::time::sleep;

use super::named::{Named, SPAN};
use crate::{
    broker::{BrokerError, Page},
    hub::Piece,
    node::{Facts, Node, follow::Followed, story::RETRY},
    protocol::{Event, EventKind, Moment, PairId, Position, RoomName, Stand, Topic, Watching},
};

/// How many of the newest events tell where a pair is now, and what it watches: its record may lag behind them, by no
/// more than what happens while it is written.
const TAIL: usize = 32;

pub(super) async fn look_up(node: &Node, pair: PairId) -> Result<Option<Facts>, BrokerError> {
    Ok(node.registry.look_up(pair).await?.and_then(|record| Facts::read(&record.facts)))
}

/// The newest events up to `head`.
pub(super) async fn tail(node: &Node, pair: PairId, head: Position) -> Result<Vec<Event>, BrokerError> {
    let after = Position { offset: head.offset.saturating_sub(TAIL as u64), nonce: 0 };
    let Page { entries, .. } = node.broker.read(&Topic::Pair(pair), after, TAIL).await?;
    let told = entries.into_iter().filter(|entry| entry.position.offset <= head.offset);
    Ok(told.filter_map(|entry| Event::decode(&entry.payload).ok()).collect())
}

/// The room where a pair is, with where it came to its talk, and what it watches, after the newest events of its story.
pub(super) fn where_it_is(facts: Option<Facts>, tail: &[Event]) -> (Option<(RoomName, Option<Position>)>, Watching) {
    let (mut room, watching) =
        facts.map_or((None, None), |facts| (Some((facts.room, facts.since)), Some(facts.watching)));
    for event in tail {
        match stand_of(event) {
            // Where it is said to be as before, it came there earlier.
            Some(stand) if room.as_ref().is_some_and(|(here, since)| *here == stand.room && since.is_some()) => {}
            Some(stand) => room = Some((stand.room.clone(), Some(stand.at))),
            None if event.kind == EventKind::PairEnded => room = None,
            None => {}
        }
    }
    (room, tail.iter().rev().find_map(watching_told).or(watching).unwrap_or_default())
}

/// What a cursor names of a talk at its head, for whoever hears it, from wherever on: `since` is where the pair came to it.
pub(super) async fn named_at(
    node: &Node,
    topic: &Topic,
    (since, head): (Option<Position>, Position),
    (pair, watching): (PairId, Watching),
) -> Result<Named, BrokerError> {
    let near = since.filter(|since| head.offset.saturating_sub(since.offset) <= SPAN);
    let after = near.unwrap_or(Position { offset: head.offset.saturating_sub(SPAN), nonce: 0 });
    let mut entries = Vec::new();
    if after.offset < head.offset {
        entries = node.broker.read(topic, after, SPAN as usize).await?.entries;
    }
    let begin = since.or(entries.first().map(|entry| entry.previous)).unwrap_or(head);
    let read = entries.into_iter().map(|entry| (entry.position, Event::decode(&entry.payload).ok()));
    Ok(Named::at_head(pair, watching, (begin, head), read))
}

/// Does something with the broker until it works.
pub(super) async fn insist<T, E, F: Future<Output = Result<T, E>>>(work: impl Fn() -> F) -> T {
    loop {
        match work().await {
            Ok(done) => return done,
            Err(_) => sleep(RETRY).await,
        }
    }
}

pub(super) fn stand_of(event: &Event) -> Option<&Stand> {
    event.unsaid.as_ref()?.stand.as_ref()
}

pub(super) fn stand_in(next: &Followed) -> Option<&Stand> {
    let Followed::Piece(piece) = next else { return None };
    piece.event().and_then(|event| stand_of(event))
}

/// When it happened. What does not say so is told at once.
pub(super) fn happened(next: &Followed) -> Option<Moment> {
    let Followed::Piece(piece) = next else { return None };
    let event: Option<&Arc<Event>> = Piece::event(piece);
    event.map(|event| event.at)
}

/// What is watched from this event on.
pub(super) fn watching_told(event: &Event) -> Option<Watching> {
    let said = (event.kind == EventKind::ClientChanged).then(|| event.data())?;
    Watching::deserialize(said.get("watching")?).ok()
}
