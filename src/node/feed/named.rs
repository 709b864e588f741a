//! What a cursor names of a room's talk. It follows from what is kept, and not from what came to whom first: so an event
//! has the same cursor for everyone.

use std::{collections::VecDeque, time::Duration};

use crate::{
    node::{clock::millis_in, detached::is_told},
    protocol::{Event, EventKind, PairId, Position, Watching},
};

/// Every so many entries of a talk there is one that is named though it was not told, lest what is named be trimmed.
const EVERY: u64 = 128;
/// By what happens so much later: by then it has come to everyone.
const SETTLED: Duration = Duration::from_secs(60);
/// How many of them may wait for that. In a room that says more, the oldest is named sooner.
const UNSETTLED: usize = 3;
/// How far behind the head of a talk the names are to be found.
pub(super) const SPAN: u64 = EVERY * (UNSETTLED as u64 + 1);

/// What is named of a talk: the latest of where the pair came to the room, the last entry that was told, and the last of
/// those that are named though they are not told.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pair: PairId,
    /// What is named now.
    pub at: Position,
    /// Where what was told last stands, or was passed over.
    pub passed: Position,
    /// The last of each kind that may be watched.
    joins: Position,
    signals: Position,
    /// What is named from a while after it happened on, oldest first.
    unsettled: VecDeque<(Position, u64)>,
}

impl Named {
    /// At a place that is named.
    pub(super) fn new(pair: PairId, at: Position) -> Self {
        Self { pair, at, passed: at, joins: at, signals: at, unsettled: VecDeque::new() }
    }

    /// At the head of a talk, for whoever hears it, from wherever on: the pair came to it at `since`, and these are its
    /// newest entries.
    pub(super) fn at_head(
        pair: PairId,
        watching: Watching,
        (since, head): (Position, Position),
        entries: impl Iterator<Item = (Position, Option<Event>)>,
    ) -> Self {
        let mut named = Self::new(pair, since);
        for (position, event) in entries.filter(|(position, _)| position.offset <= head.offset) {
            named.pass(position, event.as_ref(), watching);
        }
        named.passed = head;
        named
    }

    /// An entry is passed over, or about to be told: that is returned. What can't be read is told as a gap.
    pub(super) fn pass(&mut self, position: Position, event: Option<&Event>, watching: Watching) -> bool {
        self.passed = position;
        let told = event.is_none_or(|event| is_told(event, self.pair, watching));
        match event {
            Some(event) if event.is_of(self.pair) => {}
            Some(event) if matches!(event.kind, EventKind::PeerJoined | EventKind::PeerLeft) => self.joins = position,
            Some(event) if event.kind == EventKind::Signal => self.signals = position,
            _ => {}
        }
        if told {
            self.stand_at(position);
        } else if let Some(event) = event.filter(|_| position.offset.is_multiple_of(EVERY)) {
            if self.unsettled.len() == UNSETTLED {
                self.name_oldest();
            }
            self.unsettled.push_back((position, millis_in(event.at()).unwrap_or_default()));
        }
        told
    }

    /// Stands behind what can't be told.
    pub(super) fn stand_at(&mut self, position: Position) {
        (self.at, self.passed) = (position, position);
        self.unsettled.clear();
    }

    /// Something of the pair is about to be told that happened then.
    pub(super) fn settle(&mut self, happened: &str) {
        if self.unsettled.is_empty() {
            return;
        }
        let before = millis_in(happened).unwrap_or_default().saturating_sub(SETTLED.as_millis() as u64);
        while self.unsettled.front().is_some_and(|(_, at)| *at < before) {
            self.name_oldest();
        }
    }

    fn name_oldest(&mut self) {
        if let Some((oldest, _)) = self.unsettled.pop_front() {
            self.at = oldest;
        }
    }

    /// Something else is watched from now on: what of that was not told before is not told when it is read again.
    pub(super) fn watch(&mut self, watching: Watching) {
        let watched = [(watching.joins, self.joins), (watching.signals, self.signals)];
        let last = watched.into_iter().filter(|(on, _)| *on).map(|(_, at)| at).max_by_key(|at| at.offset);
        if let Some(last) = last.filter(|last| last.offset > self.at.offset) {
            self.at = last;
            self.unsettled.retain(|(at, _)| at.offset > last.offset);
        }
    }
}
