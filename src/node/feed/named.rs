//! What a cursor names of a room's talk. It follows from what is kept, and not from what came to whom first: so an event
//! has the same cursor for everyone.

use std::collections::VecDeque;

use crate::{
    node::detached::is_told,
    protocol::{Event, Moment, PairId, Position, Watching},
};

/// Every so many entries of a talk there is one that is named though it was not told, lest what is named be trimmed.
const EVERY: u64 = 128;
/// By what happens so many milliseconds later: by then it has come to everyone.
const SETTLED: u64 = 60_000;
/// How many of them may wait for that. In a room that says more, the oldest is named sooner.
const UNSETTLED: usize = 3;
/// How far behind the head of a talk the names are to be found.
pub(super) const SPAN: u64 = EVERY * (UNSETTLED as u64 + 1);

const ALL: Watching = Watching { joins: true, marks: true, signals: true };

/// What is named of a talk: the latest of where the pair came to the room, the last entry that was told, and the last of
/// those that are named though they are not told.
#[derive(Debug, Clone)]
pub(super) struct Named {
    /// What is named now.
    pub at: Position,
    /// The offset of what was told last, or passed over.
    pub passed: u64,
    /// The last that is told to who watches more.
    unwatched: Position,
    /// What is named from a while after it happened on, oldest first. Most listeners have none.
    unsettled: Option<Box<Unsettled>>,
}

type Unsettled = VecDeque<(Position, Moment)>;

impl Named {
    /// At a place that is named.
    pub(super) fn new(at: Position) -> Self {
        Self { at, passed: at.offset, unwatched: at, unsettled: None }
    }

    /// At the head of a talk, for whoever hears it, from wherever on: the pair came to it at `since`, and these are its
    /// newest entries.
    pub(super) fn at_head(
        pair: PairId,
        watching: Watching,
        (since, head): (Position, Position),
        entries: impl Iterator<Item = (Position, Option<Event>)>,
    ) -> Self {
        let mut named = Self::new(since);
        for (position, event) in entries.filter(|(position, _)| position.offset <= head.offset) {
            named.pass(position, event.as_ref(), (pair, watching));
        }
        named.passed = head.offset;
        named
    }

    /// An entry is passed over, or about to be told: that is returned. What can't be read is told as a gap.
    pub(super) fn pass(&mut self, at: Position, event: Option<&Event>, (pair, watching): (PairId, Watching)) -> bool {
        self.passed = at.offset;
        match event {
            Some(event) if !is_told(event, pair, watching) => {
                if is_told(event, pair, ALL) {
                    self.unwatched = at;
                }
                if at.offset.is_multiple_of(EVERY) {
                    let unsettled = self.unsettled.get_or_insert_default();
                    unsettled.push_back((at, event.at));
                    self.name_while(|unsettled| unsettled.len() > UNSETTLED);
                }
                false
            }
            _ => {
                self.stand_at(at);
                true
            }
        }
    }

    /// Stands behind what was told, or can't be.
    pub(super) fn stand_at(&mut self, at: Position) {
        (self.at, self.passed, self.unsettled) = (at, at.offset, None);
    }

    /// Something of the pair is about to be told that happened then.
    pub(super) fn settle(&mut self, happened: Moment) {
        if self.unsettled.is_some() {
            let before = Moment(happened.0.saturating_sub(SETTLED));
            self.name_while(|unsettled| unsettled[0].1 < before);
        }
    }

    /// Something else is watched from now on: what of that was not told before is not told when it is read again.
    pub(super) fn watch(&mut self) {
        let last = self.unwatched.offset;
        self.name_while(|unsettled| unsettled[0].0.offset <= last);
        if self.at.offset < last {
            self.at = self.unwatched;
        }
    }

    fn name_while(&mut self, due: impl Fn(&Unsettled) -> bool) {
        while let Some(unsettled) = self.unsettled.as_mut().filter(|unsettled| due(unsettled)) {
            if let Some((at, _)) = unsettled.pop_front() {
                self.at = at;
            }
            if unsettled.is_empty() {
                self.unsettled = None;
            }
        }
    }
}
