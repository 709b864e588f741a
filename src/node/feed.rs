//! Feeds: a pair's story for one listener, from a cursor on and then live.
//!
//! Two histories make it: the pair's own, and the talk of the room where it is at that place of its story. Each is told
//! in its own order; between them, what happened first is told first. Where the story itself says how the two stand to
//! each other (the pair came to a room, left it, or moved) that counts, so that all listeners are told the same.

mod open;
mod signs;

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use self::signs::{happened, insist, look_up, stand_in, stand_of, watching_told};
use super::{
    Facts, Node,
    detached::is_told,
    follow::{Followed, Follower},
    now,
};
use crate::{
    hub::Ear,
    protocol::{Event, EventKind, PairId, Place, Position, RoomName, Said, Topic, Watching},
};

/// What is not told moves a cursor only when there is so much of it that it may soon be trimmed: so listeners who hear the
/// two histories in another order are given the same cursors all the same.
const UNTOLD: u64 = 192;

/// One thing to tell, and the place in the story that it is told at.
pub type FeedItem = (Arc<Event>, Place);

/// A listener's place in a pair's story. Dropping it ends the listening.
pub struct Feed {
    node: Arc<Node>,
    pair: PairId,
    ear: Arc<Ear>,
    story: Follower,
    story_next: Option<Followed>,
    /// Of the room where the pair is.
    talk: Option<Follower>,
    talk_next: Option<Followed>,
    /// Where what was told last stands.
    place: Place,
    /// Where what was told last of the talk stands, or was passed over.
    passed: Position,
    step: Option<BoxFuture<'static, Step>>,
    /// The record was looked at, because events are missing that may have told of other rooms.
    informed: bool,
    /// The story has said where it stands in the talk, since it began or was missing something.
    stood: bool,
    /// Something of the talk was told, or may have been on the way to the cursor that this began with.
    spoken: bool,
    /// What the story says to be told before is looked for.
    sought: bool,
    due: VecDeque<FeedItem>,
    /// What was told last is a gap whose size nobody knows.
    parted: bool,
    /// It was told that the node drains.
    drain_told: bool,
}

/// What must be done before the story can go on.
enum Step {
    Looked(Option<Facts>),
    Opened(Follower),
}

/// Which of the two histories goes on.
#[derive(PartialEq)]
enum Turn {
    Story,
    Talk,
    Wait,
}

impl Feed {
    fn new(node: &Arc<Node>, ear: Arc<Ear>, story: Follower, talk: Option<Follower>, place: Place) -> Self {
        Self {
            node: Arc::clone(node),
            pair: ear.pair,
            ear,
            story,
            story_next: None,
            talk,
            talk_next: None,
            passed: place.room.as_ref().map(|(_, at)| *at).unwrap_or_default(),
            stood: place.pair != Position::START,
            place,
            step: None,
            informed: false,
            spoken: false,
            sought: false,
            due: VecDeque::new(),
            parted: false,
            drain_told: false,
        }
    }

    /// Where the listener stands: everything after it will be told.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The next thing to tell. May be dropped while it waits; nothing is lost by that.
    ///
    /// That the node drains is told as well, and wakes nobody here: whoever has a feed waits for that itself, and asks again.
    pub async fn next(&mut self) -> FeedItem {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<FeedItem> {
        loop {
            if let Some(item) = self.due.pop_front() {
                return Poll::Ready(item);
            }
            if let Some(notice) = self.node.drain_notice.get().filter(|_| !self.drain_told) {
                self.drain_told = true;
                return Poll::Ready(self.aside(EventKind::NodeDraining, notice.clone()));
            }
            self.look_ahead();
            if self.advance() {
                continue;
            }
            if let Some(step) = &mut self.step
                && let Poll::Ready(step) = step.as_mut().poll(cx)
            {
                self.step = None;
                self.take(step);
                continue;
            }
            let story = self.story_next.is_none() && self.story.poll_proceed(cx).is_ready();
            let talk = self.talk.as_mut().filter(|_| self.talk_next.is_none());
            let talk = talk.is_some_and(|talk| talk.poll_proceed(cx).is_ready());
            if !story && !talk {
                return Poll::Pending;
            }
        }
    }

    /// What comes next in each. What arrived in the one history before it arrived in the other is seen in both.
    fn look_ahead(&mut self) {
        for _ in 0..2 {
            if self.talk_next.is_none() {
                self.talk_next = self.talk.as_mut().and_then(Follower::next_here);
            }
            if self.story_next.is_none() {
                self.story_next = self.story.next_here();
            }
        }
    }

    /// Takes the next step, if there is nothing to wait for before it.
    fn advance(&mut self) -> bool {
        if let Some(Followed::Aside(kind, data)) = &self.story_next {
            let item = self.aside(*kind, Value::clone(data));
            self.due.push_back(item);
            self.story_next = None;
            return true;
        }
        if let Some(Followed::Aside(..)) = self.talk_next {
            self.talk_next = None;
            return true;
        }
        if self.step.is_some() {
            return false;
        }
        if let Some(Followed::Gap(_)) = self.story_next {
            // What the story said of the room may be in what is missing.
            self.stood = false;
            if self.inform() {
                return true;
            }
        }
        match self.turn() {
            Turn::Story => self.story_goes_on(),
            Turn::Talk => self.talk_goes_on(),
            Turn::Wait => return false,
        }
        true
    }

    fn turn(&mut self) -> Turn {
        let talk_comes = self.talk_next.is_none() && self.talk.as_ref().is_some_and(|talk| !talk.rests());
        let story_comes = self.story_next.is_none() && !self.story.rests();
        match (&self.story_next, &self.talk_next) {
            (Some(Followed::Gap(_)), talk) => match (self.story.behind(), talk) {
                // What was said in the room before that which follows is told first, so that the gap's cursor names the
                // same place there as those behind it, whichever history was read first.
                (Some(_), None) if talk_comes => Turn::Wait,
                (Some(next), Some(talk @ Followed::Piece(_))) if self.is_first(talk, next) => Turn::Talk,
                _ => Turn::Story,
            },
            (None, None) => Turn::Wait,
            (None, Some(_)) if story_comes => Turn::Wait,
            (_, Some(Followed::Gap(_))) | (None, Some(_)) => Turn::Talk,
            (Some(_), None) if talk_comes => Turn::Wait,
            (Some(next), None) => {
                let missing = self.until(next).is_some_and(|until| self.passed.offset < until.offset);
                match self.talk.as_mut().filter(|_| missing) {
                    // Said to be there: it may have been lost on its way.
                    Some(talk) if !self.sought => {
                        self.sought = true;
                        talk.look();
                        Turn::Wait
                    }
                    // Told without it, it would have another cursor than to those who heard both; and if the room is
                    // left with this, its talk can't be told any more afterwards.
                    Some(talk) if talk.is_late() => Turn::Wait,
                    _ => Turn::Story,
                }
            }
            (Some(next), Some(talk)) if self.is_first(talk, next) => Turn::Talk,
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
        let (room, _) = self.place.room.as_ref()?;
        if stand.room == *room {
            return Some(stand.at);
        }
        stand.left.as_ref().filter(|(left, _)| left == room).map(|(_, at)| *at)
    }

    /// Whether the pair leaves its room by this.
    fn leaves(&self, next: &Followed) -> bool {
        stand_in(next).is_some_and(|stand| self.place.room.as_ref().is_none_or(|(room, _)| *room != stand.room))
    }

    /// Looks how the pair is now, before something that is missing is told. False when that is done.
    fn inform(&mut self) -> bool {
        if std::mem::replace(&mut self.informed, true) {
            return false;
        }
        let (node, pair) = (Arc::clone(&self.node), self.pair);
        self.step = Some(Box::pin(async move { Step::Looked(insist(|| look_up(&node, pair)).await) }));
        true
    }

    fn story_goes_on(&mut self) {
        let missing = match &self.story_next {
            Some(Followed::Piece(piece)) => piece.event().is_none_or(|event| event.kind == EventKind::Gap),
            _ => true,
        };
        if missing && self.inform() {
            return;
        }
        (self.informed, self.sought) = (false, false);
        match self.story_next.take() {
            Some(Followed::Piece(piece)) => {
                self.place.pair = piece.position;
                match piece.event() {
                    Some(event) => {
                        self.live_through(event);
                        self.tell(Arc::clone(event));
                    }
                    // Kept by a newer version: said, not passed over.
                    None => self.tell_gap(Some(1)),
                }
            }
            Some(Followed::Gap(gap)) => {
                self.place.pair = gap.at;
                self.tell_gap(gap.lost);
            }
            _ => {}
        }
    }

    /// What an event of the pair changes for what is told after it, and for its own cursor.
    fn live_through(&mut self, event: &Event) {
        if let Some(watching) = watching_told(event).filter(|watching| *watching != self.place.watching) {
            self.watch(watching);
            // What was not told before is not told when it is read again.
            if let Some((_, at)) = &mut self.place.room {
                *at = self.passed;
            }
        }
        if event.kind == EventKind::PairEnded {
            (self.talk, self.talk_next, self.place.room) = (None, None, None);
        }
        self.stood &= event.kind != EventKind::Gap;
        let Some(stand) = stand_of(event) else { return };
        // Who came when others had come since knew the place only roughly; told nothing of them, it takes the true one.
        let roughly = !std::mem::replace(&mut self.stood, true) && !self.spoken;
        match &mut self.place.room {
            Some((room, at)) if *room == stand.room => {
                if self.passed.offset >= stand.at.offset && (at.offset < stand.at.offset || roughly) {
                    *at = stand.at;
                }
            }
            _ => self.go_to(stand.room.clone(), stand.at),
        }
    }

    fn watch(&mut self, watching: Watching) {
        self.place.watching = watching;
        self.ear.set(watching);
    }

    /// The pair is in another room, from this place of its talk on.
    fn go_to(&mut self, room: RoomName, at: Position) {
        (self.talk, self.talk_next, self.passed) = (None, None, at);
        self.place.room = Some((room.clone(), at));
        let (node, ear) = (Arc::clone(&self.node), Arc::clone(&self.ear));
        self.step = Some(Box::pin(async move {
            let topic = Topic::Talk(room);
            let open = || Follower::open_as(&node, topic.clone(), Some(at), Some(Arc::clone(&ear)));
            Step::Opened(insist(open).await)
        }));
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Opened(talk) => self.talk = Some(talk),
            Step::Looked(None) => {}
            Step::Looked(Some(facts)) => {
                self.watch(facts.watching);
                // It may have come to its present room in what is missing.
                let Some((here, _)) = &self.place.room else { return };
                if let Some(since) = facts.since
                    && (*here != facts.room || since.offset > self.passed.offset)
                {
                    self.go_to(facts.room, since);
                }
            }
        }
    }

    fn talk_goes_on(&mut self) {
        let Some((_, at)) = &mut self.place.room else {
            self.talk_next = None;
            return;
        };
        let watching = self.place.watching;
        match self.talk_next.take() {
            Some(Followed::Piece(piece)) => {
                self.passed = piece.position;
                let event = piece.event();
                let told = event.is_none_or(|event| is_told(event, self.pair, watching));
                // Where it enters and leaves, the story says as well, as long as that is kept.
                let own = !self.stood && event.is_some_and(|event| event.is_of(self.pair));
                self.spoken |= told;
                if told || own || piece.position.offset >= at.offset.saturating_add(UNTOLD) {
                    *at = piece.position;
                }
                match event {
                    Some(event) if told => self.tell(Arc::clone(event)),
                    Some(_) => {}
                    None => self.tell_gap(Some(1)),
                }
            }
            Some(Followed::Gap(gap)) => {
                (*at, self.passed) = (gap.at, gap.at);
                // Whoever is told nothing of it misses nothing.
                if watching.joins || watching.signals {
                    self.tell_gap(gap.lost);
                }
            }
            _ => {}
        }
    }

    /// Says something about the connection, behind what is to be told already.
    pub fn say(&mut self, kind: EventKind, data: Value) {
        let item = self.aside(kind, data);
        self.due.push_back(item);
    }

    fn aside(&self, kind: EventKind, data: Value) -> FeedItem {
        (Arc::new(Event::new(kind, now(), &Said { data, cause: None }, None)), self.place.clone())
    }

    /// Something is to be told next. A history that begins anew says so itself, and the listener sees it as well: of such
    /// gaps in a row, whose size nobody knows, one is told.
    fn tell(&mut self, event: Arc<Event>) {
        let parted = event.kind == EventKind::Gap && event.data()["lost"].is_null();
        if !(std::mem::replace(&mut self.parted, parted) && parted) {
            self.due.push_back((event, self.place.clone()));
        }
    }

    fn tell_gap(&mut self, lost: Option<u64>) {
        let (event, _) = self.aside(EventKind::Gap, json!({ "lost": lost }));
        self.tell(event);
    }
}
