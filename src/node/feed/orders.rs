//! A pair's story in every order in which its two histories can be appended, looked at and delivered, with a listener
//! that naps wherever it can: an event has one cursor for everyone, and from each cursor the rest is told, once.
//!
//! Each history comes in its own order and without a hole: that is `node::replay`'s part, and has its own model.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    FeedItem,
    merge::{Merge, Outlook, Step},
    named::Named,
};
use crate::{
    hub::{Ear, Piece},
    node::follow::Followed,
    protocol::{Event, EventKind, Moment, PairId, Place, Position, RoomName, Said, Stand, Topic, Unsaid, Watching},
};

/// How many times the listener naps, and how many readings fail.
const NAPS: u8 = 2;
const FAILURES: u8 = 1;

/// What is appended, in the order in which it is.
#[derive(Clone)]
struct World {
    pair: PairId,
    first: Place,
    entries: Vec<(Topic, Arc<Piece>)>,
}

impl World {
    /// The history of a topic, as it is when so much was appended in all.
    fn kept(&self, topic: &Topic, appended: usize) -> Vec<&Arc<Piece>> {
        self.entries[..appended].iter().filter(|(of, _)| of == topic).map(|(_, piece)| piece).collect()
    }

    /// Whether something that has not come by then is too old for that.
    fn is_overdue(&self, state: &State) -> bool {
        let Some(talk) = &state.talk else { return false };
        let kept = self.kept(&talk.topic, state.appended);
        let missing = kept.iter().skip(talk.come).filter_map(|piece| piece.event()).map(|event| seconds(event));
        let told = state.told.iter().map(|(event, _)| seconds(event)).max().unwrap_or_default();
        missing.min().is_some_and(|oldest| oldest + 60 < told)
    }
}

/// One follower: what has come of its history, and the reading that is under way.
#[derive(Debug, Clone)]
struct Line {
    topic: Topic,
    at: Position,
    come: usize,
    reading: Option<Reading>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Reading {
    Sent,
    /// It failed, and waits before it is tried again.
    Late,
    /// Of a history that had so many entries.
    Page(usize, bool),
}

impl Line {
    fn after(topic: Topic, at: Position) -> Self {
        Self { topic, at, come: 0, reading: Some(Reading::Sent) }
    }

    fn next(&mut self, world: &World) -> Option<Followed> {
        let kept = world.kept(&self.topic, world.entries.len());
        let next = kept.into_iter().take(self.come).find(|piece| piece.position.offset > self.at.offset)?;
        self.at = next.position;
        Some(Followed::Piece(Arc::clone(next)))
    }

    fn outlook(&self, world: &World) -> Outlook<'static> {
        let kept = world.kept(&self.topic, world.entries.len());
        let due = kept.iter().take(self.come).any(|piece| piece.position.offset > self.at.offset);
        let late = matches!(self.reading, Some(Reading::Late | Reading::Page(_, true)));
        Outlook { comes: due || self.reading.is_some() && !late, late, behind: None }
    }
}

/// The world and its listener at one moment.
#[derive(Clone)]
struct State {
    appended: usize,
    merge: Merge,
    story: Line,
    talk: Option<Line>,
    told: Vec<FeedItem>,
    naps: u8,
    failures: u8,
    /// It did not begin at the start.
    now: bool,
}

impl State {
    fn wake(world: &World, appended: usize, place: &Place) -> Self {
        let talk = place.room.as_ref().map(|(room, at)| Line::after(Topic::Talk(room.clone()), *at));
        let story = Line::after(Topic::Pair(world.pair), place.pair);
        let merge = Merge::new(ear(world), place.clone());
        Self { appended, merge, story, talk, told: Vec::new(), naps: 0, failures: 0, now: false }
    }

    /// Begins now: with so much appended when it looks at the pair's own history, and so much when at the talk.
    fn now(
        world: &World,
        [own, appended]: [usize; 2],
        (room, since): (&RoomName, Position),
        watching: Watching,
    ) -> Self {
        let line = |topic: Topic, seen: usize| {
            let kept = world.kept(&topic, seen);
            let at = kept.last().map_or(Position::START, |piece| piece.position);
            Line { at, come: kept.len(), reading: None, topic }
        };
        let (story, talk) = (line(Topic::Pair(world.pair), own), line(Topic::Talk(room.clone()), appended));
        let behind =
            world.kept(&talk.topic, appended).into_iter().filter(|piece| piece.position.offset > since.offset);
        let behind = behind.map(|piece| (piece.position, piece.event().map(|event| Event::clone(event))));
        let named = Named::at_head(world.pair, watching, (since, talk.at), behind);
        let place = Place { pair: story.at, room: Some((room.clone(), named.at)), watching };
        let merge = Merge::behind(ear(world), place, named);
        Self { appended, merge, story, talk: Some(talk), told: Vec::new(), naps: 0, failures: 0, now: true }
    }

    /// Goes on for as long as nothing is to be waited for.
    fn go_on(&mut self, world: &World) {
        loop {
            while let Some(item) = self.merge.pop() {
                self.told.push(item);
            }
            if self.merge.talk.is_none() {
                self.merge.talk = self.talk.as_mut().and_then(|talk| talk.next(world));
            }
            if self.merge.story.is_none() {
                self.merge.story = self.story.next(world);
            }
            let talk = self.talk.as_ref().map(|talk| talk.outlook(world));
            match self.merge.advance(self.story.outlook(world), talk) {
                Step::Wait => return,
                Step::On if !self.merge.is_somewhere() => self.talk = None,
                Step::On => {}
                Step::Look => {
                    let talk = self.talk.as_mut().expect("a talk to look at");
                    talk.reading = Some(Reading::Sent);
                }
                Step::Inform => unreachable!("nothing is missing"),
                Step::GoTo(room, at) => self.talk = Some(Line::after(Topic::Talk(room), at)),
            }
        }
    }

    /// What may happen next.
    fn next(&self, world: &World) -> Vec<Self> {
        let mut all = Vec::new();
        let mut then = |change: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            next.go_on(world);
            all.push(next);
        };
        if self.appended < world.entries.len() {
            then(&|next| next.appended += 1);
        }
        let lines: [fn(&mut Self) -> Option<&mut Line>; 2] = [|s| Some(&mut s.story), |s| s.talk.as_mut()];
        for line in lines {
            let mut now = self.clone();
            let Some(of) = line(&mut now) else { continue };
            let kept = world.kept(&of.topic, self.appended).len();
            let mut set = |come: usize, reading: Option<Reading>, failures: u8| {
                then(&|next| {
                    next.failures += failures;
                    let line = line(next).expect("as before");
                    (line.come, line.reading) = (line.come.max(come), reading);
                });
            };
            match of.reading {
                None if of.come < kept => set(of.come + 1, None, 0),
                None => {}
                Some(Reading::Sent) => {
                    set(0, Some(Reading::Page(kept, false)), 0);
                    if self.failures < FAILURES {
                        set(0, Some(Reading::Late), 1);
                    }
                }
                Some(Reading::Late) => set(0, Some(Reading::Page(kept, true)), 0),
                Some(Reading::Page(kept, _)) => set(kept, None, 0),
            }
        }
        // The cursor of what was told last, of "ready" or of something about the connection.
        if self.naps < NAPS {
            let mut woken = Self::wake(world, self.appended, &self.merge.place());
            (woken.told, woken.naps, woken.failures) = (self.told.clone(), self.naps + 1, self.failures);
            woken.now = self.now;
            all.push(woken);
        }
        all
    }

    fn key(&self) -> String {
        let told: Vec<_> = self.told.iter().map(|(_, place)| place).collect();
        format!("{:?}", (self.appended, &self.merge, &self.story, &self.talk, told, self.naps, self.failures))
    }
}

fn ear(world: &World) -> Arc<Ear> {
    Arc::new(Ear::new(world.pair, SIGNALS))
}

/// What is told to one that wakes there when all was appended.
fn rest(world: &World, place: &Place) -> Vec<FeedItem> {
    let mut state = State::wake(world, world.entries.len(), place);
    for _ in 0..100 {
        state.naps = NAPS;
        state.failures = FAILURES;
        let Some(next) = state.next(world).pop() else { return state.told };
        state = next;
    }
    panic!("it never ends");
}

fn texts(told: &[FeedItem]) -> Vec<String> {
    let mut texts: Vec<_> = told.iter().map(|(event, _)| text(event)).collect();
    texts.sort();
    texts
}

fn text(event: &Event) -> String {
    format!("{} {}", event.kind.as_str(), event.data())
}

/// Walks through all that can become of these. Who begins at the start is told everything; and if nothing can be told in
/// another order, an event has one cursor.
fn walk(world: &World, begin: Vec<State>, alike: bool) {
    let kept = rest(world, &world.first);
    let cursors: HashMap<_, _> = kept.iter().map(|(event, place)| (text(event), place)).collect();
    let all = texts(&kept);
    let (mut seen, mut todo) = (HashSet::new(), begin);
    for appended in 0..=world.entries.len() {
        todo.push(State::wake(world, appended, &world.first));
    }
    while let Some(state) = todo.pop() {
        if !seen.insert(state.key()) {
            continue;
        }
        let next = state.next(world);
        if next.iter().all(|next| next.naps > state.naps) {
            let told = texts(&state.told);
            assert!(told == all || state.now && told.iter().all(|told| all.contains(told)), "{told:?} of {all:?}");
            for (at, (_, place)) in state.told.iter().enumerate() {
                let rest = texts(&rest(world, place));
                assert_eq!(rest, texts(&state.told[at + 1..]), "the rest is told from {place:?}");
            }
        }
        for (event, place) in state.told.iter().filter(|_| alike) {
            assert_eq!(place, cursors[&text(event)], "{} has another cursor", text(event));
        }
        todo.extend(next.into_iter().filter(|next| !world.is_overdue(next)));
    }
    println!("{} states", seen.len());
}

/// Writes a world down.
struct Writer(World);

impl Writer {
    fn begin(first: u64, watching: Watching) -> Self {
        let room = Some(("hall".parse().expect("a name"), at(first)));
        let first = Place { pair: Position::START, room, watching };
        Self(World { pair: PairId::fresh(), first, entries: Vec::new() })
    }

    fn add(&mut self, topic: Topic, offset: u64, second: u64, kind: EventKind, data: Value, unsaid: Unsaid) {
        let said = Said { data, cause: None };
        let payload = Event::new(kind, Moment(second * 1_000), &said, Some(Box::new(unsaid)))
            .encode()
            .expect("it can be written");
        self.0.entries.push((topic, Arc::new(Piece::new(at(offset), Position::START, payload.into()))));
    }

    /// In the pair's own history.
    fn own(&mut self, second: u64, kind: EventKind, stand: Option<Stand>) -> &mut Self {
        let topic = Topic::Pair(self.0.pair);
        let offset = self.0.kept(&topic, self.0.entries.len()).len() as u64 + 1;
        self.add(topic, offset, second, kind, json!({"own": offset}), Unsaid { stand, ..Unsaid::default() });
        self
    }

    /// In a room's talk; of the pair itself, or of another.
    fn talk(&mut self, room: &str, (offset, second): (u64, u64), kind: EventKind, own: bool) -> &mut Self {
        let of = Some(if own { self.0.pair } else { PairId::fresh() }.uuid());
        let topic = Topic::Talk(room.parse().expect("a name"));
        self.add(
            topic,
            offset,
            second,
            kind,
            json!({"room": room, "talk": offset}),
            Unsaid { of, ..Unsaid::default() },
        );
        self
    }
}

fn at(offset: u64) -> Position {
    Position { offset, nonce: offset * 7 }
}

fn seconds(event: &Event) -> u64 {
    event.at.0 / 1_000
}

fn stand(room: &str, talk: u64, left: Option<(&str, u64)>) -> Stand {
    let place = |room: &str, talk| (room.parse().expect("a name"), at(talk));
    let (room, at) = place(room, talk);
    Stand { room, at, left: left.map(|(room, talk)| place(room, talk)) }
}

/// All that begin now, wherever they are when they do.
fn all_now(world: &World, room: &str, since: u64, watching: Watching) -> Vec<State> {
    let (room, all) = (room.parse().expect("a name"), world.entries.len());
    let begin = |(own, talk)| State::now(world, [own, talk], (&room, at(since)), watching);
    (0..=all).flat_map(|own| (own..=all).map(move |talk| (own, talk))).map(begin).collect()
}

const SIGNALS: Watching = Watching { joins: false, marks: false, signals: true };
const JOINS: Watching = Watching { joins: true, ..SIGNALS };

/// A socket that was told late: the room has gone on since it entered, and has seen it leave.
#[test]
fn what_is_told_late_has_the_place_that_it_had() {
    let mut world = Writer::begin(1, SIGNALS);
    world
        .talk("hall", (2, 10), EventKind::PeerJoined, true)
        .talk("hall", (3, 11), EventKind::PeerJoined, false)
        .talk("hall", (4, 12), EventKind::PeerLeft, true)
        .own(10, EventKind::ClientOpened, Some(stand("hall", 2, None)))
        .own(12, EventKind::ClientClosed, Some(stand("hall", 4, None)))
        .talk("hall", (5, 13), EventKind::PeerJoined, false)
        .own(14, EventKind::ClientChanged, None);
    walk(&world.0, all_now(&world.0, "hall", 1, SIGNALS), true);
}

/// In a room that says much, what is named moves on, and for what happens a while later.
#[test]
fn what_is_named_untold_is_named_for_everyone() {
    let mut world = Writer::begin(126, SIGNALS);
    world
        .talk("hall", (127, 10), EventKind::PeerJoined, true)
        .own(10, EventKind::ClientOpened, Some(stand("hall", 127, None)))
        .talk("hall", (128, 11), EventKind::PeerJoined, false)
        .own(12, EventKind::ClientChanged, None)
        .talk("hall", (129, 13), EventKind::PeerJoined, false);
    // By now the room is long past that.
    let settled = world.0.clone();
    world.own(80, EventKind::ClientChanged, None).talk("hall", (130, 80), EventKind::PeerJoined, false);
    let kept = rest(&world.0, &world.0.first);
    let named: Vec<_> = kept.iter().map(|(_, place)| place.room.as_ref().expect("a room").1.offset).collect();
    assert_eq!(named, [126, 126, 128]);
    for world in [settled, world.0] {
        walk(&world, all_now(&world, "hall", 126, SIGNALS), true);
    }
}

/// What its own say is told before them is, though it comes late, or seems not to be there.
#[test]
fn what_was_said_before_is_told_before() {
    let mut world = Writer::begin(1, JOINS);
    world.talk("hall", (2, 10), EventKind::PeerJoined, false).talk("hall", (3, 10), EventKind::PeerJoined, true).own(
        10,
        EventKind::ClientOpened,
        Some(stand("hall", 3, None)),
    );
    walk(&world.0, Vec::new(), true);
}

/// Signals of the room that it leaves and of the one where it comes to.
#[test]
fn what_is_told_of_two_rooms_is_told_once() {
    let mut world = Writer::begin(1, SIGNALS);
    world
        .own(10, EventKind::ClientOpened, Some(stand("hall", 1, None)))
        .talk("hall", (2, 11), EventKind::Signal, false)
        .talk("attic", (1, 12), EventKind::Signal, false)
        .talk("hall", (3, 13), EventKind::Signal, false)
        .own(12, EventKind::ClientMoved, Some(stand("attic", 1, Some(("hall", 3)))))
        .talk("attic", (2, 14), EventKind::Signal, false);
    walk(&world.0, Vec::new(), false);
}
