//! How a pair's own history and the talk of its room become one story. Pure: it is told what comes next in each, and says
//! what to do.

use std::{collections::VecDeque, sync::Arc};

use serde_json::{Value, json};

use super::{
    FeedItem,
    named::Named,
    signs::{happened, stand_in, stand_of, watching_told},
};
use crate::{
    hub::Ear,
    node::{Facts, follow::Followed, now},
    protocol::{Event, EventKind, Place, Position, RoomName, Said, Watching},
};

/// What is known of a history, beside what comes next in it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outlook<'f> {
    /// More of it is being read, or is here.
    pub comes: bool,
    /// A reading waits for the broker, or for a writer.
    pub late: bool,
    /// What is behind that which comes next, if it is here.
    pub behind: Option<&'f Followed>,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Nothing, until something comes.
    Wait,
    /// The next step.
    On,
    /// The talk is read again: something in it may have been lost on its way.
    Look,
    /// How the pair is now is looked up, for something that is missing.
    Inform,
    /// The talk of this room is followed, from there on.
    GoTo(RoomName, Position),
}

/// Which of the two histories goes on.
#[derive(PartialEq)]
enum Turn {
    Story,
    Talk,
    Look,
    Wait,
}

/// What comes next in each history, and what is to be told.
#[derive(Debug, Clone)]
pub(super) struct Merge {
    ear: Arc<Ear>,
    /// Where what was told last stands in the pair's own history.
    at: Position,
    /// The room where the pair is there.
    room: Option<RoomName>,
    /// What its cursor names of that room's talk.
    named: Named,
    /// What it watches there.
    watching: Watching,
    /// What comes next in the pair's own history.
    pub story: Option<Followed>,
    /// What comes next in the talk of the room where the pair is.
    pub talk: Option<Followed>,
    /// The record was looked at, because events can't be read that may have told of other rooms.
    informed: bool,
    /// Events are missing in the history itself, and none has told of the pair's room since. The record is looked at when
    /// all else is told: it says how the pair is now, which need not be how it was when those that follow happened.
    unsure: bool,
    /// What the story says to be told before is looked for.
    sought: bool,
    due: VecDeque<FeedItem>,
    /// What was told last is a gap whose size nobody knows.
    parted: bool,
    /// It was told that the node drains.
    pub drain_told: bool,
}

impl Merge {
    pub(super) fn new(ear: Arc<Ear>, Place { pair, room, watching }: Place) -> Self {
        let (room, at) = room.unzip();
        ear.set(watching);
        Self {
            ear,
            at: pair,
            room,
            named: Named::new(at.unwrap_or_default()),
            watching,
            story: None,
            talk: None,
            informed: false,
            unsure: false,
            sought: false,
            due: VecDeque::new(),
            parted: false,
            drain_told: false,
        }
    }

    /// The same, where it is known what has been passed of the talk.
    pub(super) fn behind(ear: Arc<Ear>, place: Place, named: Named) -> Self {
        Self { named, ..Self::new(ear, place) }
    }

    /// Where what was told last stands.
    pub(super) fn place(&self) -> Place {
        let room = self.room.clone().map(|room| (room, self.named.at));
        Place { pair: self.at, room, watching: self.watching }
    }

    /// Whether the pair is in a room.
    pub(super) fn is_somewhere(&self) -> bool {
        self.room.is_some()
    }

    /// What is to be told next.
    pub(super) fn pop(&mut self) -> Option<FeedItem> {
        self.due.pop_front()
    }

    /// What is said about the connection waits for nothing; true when there was something.
    pub(super) fn pass_asides(&mut self) -> bool {
        if let Some(Followed::Aside(kind, data)) = &self.story {
            let (kind, data) = (*kind, Value::clone(data));
            self.story = None;
            self.say(kind, data);
            return true;
        }
        if let Some(Followed::Aside(..)) = self.talk {
            self.talk = None;
            return true;
        }
        false
    }

    /// Takes the next step, if there is nothing to wait for before it. `talk` is `None` where the pair is in no room.
    pub(super) fn advance(&mut self, story: Outlook<'_>, talk: Option<Outlook<'_>>) -> Step {
        if let Some(Followed::Gap(_)) = self.story
            && !std::mem::replace(&mut self.informed, true)
        {
            return Step::Inform;
        }
        if self.unsure && self.story.is_none() && !story.comes {
            self.unsure = false;
            return Step::Inform;
        }
        match self.turn(story, talk) {
            Turn::Story => self.story_goes_on(),
            Turn::Talk => {
                self.talk_goes_on();
                Step::On
            }
            Turn::Look => Step::Look,
            Turn::Wait => Step::Wait,
        }
    }

    fn turn(&mut self, story: Outlook<'_>, talk: Option<Outlook<'_>>) -> Turn {
        let talk_comes = self.talk.is_none() && talk.is_some_and(|talk| talk.comes);
        let story_comes = self.story.is_none() && story.comes;
        match (&self.story, &self.talk) {
            (Some(Followed::Gap(_)), said) => match (story.behind, said) {
                // What was said in the room before that which follows is told first, so that the gap's cursor names the
                // same place there as those behind it, whichever history was read first.
                (Some(_), None) if talk_comes => Turn::Wait,
                (Some(next), Some(said @ Followed::Piece(_))) if self.is_first(said, next) => Turn::Talk,
                _ => Turn::Story,
            },
            (None, None) => Turn::Wait,
            (None, Some(_)) if story_comes => Turn::Wait,
            (_, Some(Followed::Gap(_))) | (None, Some(_)) => Turn::Talk,
            (Some(_), None) if talk_comes => Turn::Wait,
            (Some(next), None) => {
                let missing = self.until(next).is_some_and(|until| self.named.passed < until.offset);
                match talk.filter(|_| missing) {
                    // Said to be there: it may have been lost on its way.
                    Some(_) if !self.sought => {
                        self.sought = true;
                        Turn::Look
                    }
                    // Told without it, it would have another cursor than to those who heard both; and if the room is
                    // left with this, its talk can't be told any more afterwards.
                    Some(talk) if talk.late => Turn::Wait,
                    _ => Turn::Story,
                }
            }
            (Some(next), Some(said)) if self.is_first(said, next) => Turn::Talk,
            (Some(_), Some(_)) => Turn::Story,
        }
    }

    /// Whether what comes in the talk is told before what comes in the story.
    fn is_first(&self, talk: &Followed, next: &Followed) -> bool {
        match (self.until(next), talk) {
            (Some(until), Followed::Piece(piece)) => piece.position.offset <= until.offset,
            (None, talk) => happened(talk) < happened(next) || self.leaves(next) && happened(talk) == happened(next),
            _ => true,
        }
    }

    /// Up to where the talk is told before this, if the story says so.
    fn until(&self, next: &Followed) -> Option<Position> {
        let stand = stand_in(next)?;
        let here = self.room.as_ref()?;
        if stand.room == *here {
            return Some(stand.at);
        }
        stand.left.as_ref().filter(|(left, _)| left == here).map(|(_, at)| *at)
    }

    /// Whether the pair leaves its room by this.
    fn leaves(&self, next: &Followed) -> bool {
        stand_in(next).is_some_and(|stand| self.room.as_ref() != Some(&stand.room))
    }

    fn story_goes_on(&mut self) -> Step {
        (self.informed, self.sought) = (false, false);
        let mut step = Step::On;
        match self.story.take() {
            Some(Followed::Piece(piece)) => {
                self.at = piece.position;
                match piece.event() {
                    Some(event) => {
                        step = self.live_through(event);
                        self.tell(Arc::clone(event));
                    }
                    // Kept by a newer version: said, not passed over.
                    None => {
                        self.unsure = true;
                        self.tell_gap(Some(1));
                    }
                }
            }
            Some(Followed::Gap(gap)) => {
                self.at = gap.at;
                self.tell_gap(gap.lost);
            }
            _ => {}
        }
        step
    }

    /// What an event of the pair changes for what is told after it, and for its own cursor.
    fn live_through(&mut self, event: &Event) -> Step {
        if let Some(watching) = watching_told(event).filter(|watching| *watching != self.watching) {
            self.watch(watching);
            self.named.watch();
        }
        self.named.settle(event.at);
        self.unsure = event.kind == EventKind::Gap || self.unsure && stand_of(event).is_none();
        if event.kind == EventKind::PairEnded {
            (self.talk, self.room) = (None, None);
        }
        match stand_of(event) {
            Some(stand) if self.room.as_ref() != Some(&stand.room) => self.go_to(stand.room.clone(), stand.at),
            _ => Step::On,
        }
    }

    /// The pair is in another room, from this place of its talk on.
    fn go_to(&mut self, room: RoomName, at: Position) -> Step {
        (self.talk, self.room, self.named) = (None, Some(room.clone()), Named::new(at));
        Step::GoTo(room, at)
    }

    /// How the pair is now, for what is missing: it may have come to its present room in that.
    pub(super) fn look_at(&mut self, facts: Facts) -> Step {
        self.watch(facts.watching);
        let Some(here) = &self.room else { return Step::On };
        // Where events can't be read any more, it may also have left that room and come back.
        let unread = matches!(self.story, Some(Followed::Gap(_)));
        match facts.since {
            Some(since) if *here != facts.room || unread && since.offset > self.named.passed => {
                self.go_to(facts.room, since)
            }
            _ => Step::On,
        }
    }

    fn watch(&mut self, watching: Watching) {
        self.watching = watching;
        self.ear.set(watching);
    }

    fn talk_goes_on(&mut self) {
        let Watching { joins, signals, .. } = self.watching;
        match self.talk.take().filter(|_| self.is_somewhere()) {
            Some(Followed::Piece(piece)) => {
                let event = piece.event();
                let whose = (self.ear.pair, self.watching);
                let told = self.named.pass(piece.position, event.map(|event| &**event), whose);
                match event {
                    Some(event) if told => self.tell(Arc::clone(event)),
                    Some(_) => {}
                    None => self.tell_gap(Some(1)),
                }
            }
            Some(Followed::Gap(gap)) => {
                self.named.stand_at(gap.at);
                // Whoever is told nothing of it misses nothing.
                if joins || signals {
                    self.tell_gap(gap.lost);
                }
            }
            _ => {}
        }
    }

    /// Says something about the connection, behind what is to be told already.
    pub(super) fn say(&mut self, kind: EventKind, data: Value) {
        let item = self.aside(kind, data);
        self.due.push_back(item);
    }

    pub(super) fn aside(&self, kind: EventKind, data: Value) -> FeedItem {
        (Arc::new(Event::new(kind, now(), &Said { data, cause: None }, None)), self.place())
    }

    /// Something is to be told next. A history that begins anew says so itself, and the listener sees it as well: of such
    /// gaps in a row, whose size nobody knows, one is told.
    fn tell(&mut self, event: Arc<Event>) {
        let parted = event.kind == EventKind::Gap && event.data()["lost"].is_null();
        if !(std::mem::replace(&mut self.parted, parted) && parted) {
            self.due.push_back((event, self.place()));
        }
    }

    fn tell_gap(&mut self, lost: Option<u64>) {
        let (event, _) = self.aside(EventKind::Gap, json!({ "lost": lost }));
        self.tell(event);
    }
}
