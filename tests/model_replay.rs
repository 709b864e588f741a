//! A listener's hand-over from replay to live, in every order of steps.
//!
//! The history, the network and the listener's naps are a model; where the listener stands and what it does next is
//! the product's own [`Replay`]. A judge that knows what was really written hears everything that is told. For each
//! shortcut that one might take there is a test that the checker finds where it loses or doubles an event.
//!
//! Bounded: the numbers in [`Bounds`], one listener, pages of two entries; four events, one fail-over and one nap
//! together were walked through once (a million states), and are left out here because of the time. A delivery may
//! come late, twice, in any order, or not at all; a look or a page may be stale when it is heard. Looks and reads
//! themselves tell the truth about one moment. Not here: entries taken out of the middle of a history (the
//! product's own tests have them).

#[path = "model_replay/world.rs"]
mod world;

use sibling_sockets::{
    node::replay::{Admit, Replay},
    protocol::Position,
};
use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Act, Bounds, Judge, PAGE, Protocol, Reading, World, Written, Wrong};

const TWICE: &str = "nothing is told twice while the fork is remembered";
const SKIPS: &str = "nothing is skipped in silence";
const STALLS: &str = "where nothing was lost, nobody waits for a look";
const UNTOLD: &str = "once things are quiet, all that is kept was told";

#[derive(Clone)]
struct HandOver {
    protocol: Protocol,
    bounds: Bounds,
}

impl HandOver {
    fn step(&self, w: &mut World, act: Act) {
        match act {
            Act::Append => w.append(w.written.len() as u64),
            Act::Retry(of) => w.append(w.position(of).nonce),
            Act::Trim => drop(w.kept.remove(0)),
            Act::FailOver(newest, untrimmed) => {
                let oldest = if untrimmed { 1 } else { w.position(w.kept[0]).offset };
                let mut kept: Vec<u8> = w.ancestors(newest).filter(|at| w.position(*at).offset >= oldest).collect();
                kept.reverse();
                w.kept = kept;
                w.fail_overs += 1;
            }
            Act::Empty => {
                w.kept.clear();
                w.fail_overs += 1;
            }
            Act::Deliver(of, again) => {
                if !again {
                    w.flying &= !(1 << of);
                }
                if w.subscribed {
                    let at = w.replay.at();
                    let blind = self.protocol == Protocol::ByOffset && w.position(of).offset > at.offset;
                    match w.replay.admit(w.position(of), if blind { at } else { w.previous(of) }) {
                        Admit::Next => {
                            w.tell(of);
                            if self.protocol == Protocol::Forgetful {
                                w.replay = Replay::new(w.replay.at());
                            }
                        }
                        Admit::Known => {}
                        Admit::Missing => w.reading = Reading::Wanted,
                    }
                }
            }
            Act::Wake(from_cursor) => {
                w.awake = true;
                w.subscribed = self.protocol != Protocol::ReadThenSubscribe;
                if from_cursor {
                    w.reading = Reading::Wanted;
                } else {
                    w.judge.last = w.head();
                    w.judge.stood = 1 << w.head();
                    w.replay = Replay::new(w.position(w.head()));
                }
            }
            Act::Subscribe => w.subscribed = true,
            Act::Read => w.reading = Reading::Page(w.page(w.replay.at(), self.protocol), w.head()),
            Act::Take(heard, asleep) => {
                let Reading::Page(page, newest) = std::mem::replace(&mut w.reading, Reading::No) else { return };
                let oldest = page.oldest.map_or(Position::START, |(_, previous)| previous);
                let turn = w.replay.page(page, PAGE);
                if let Some(gap) = turn.gap {
                    w.tell_gap(gap, newest, oldest, turn.again && turn.entries.is_empty());
                }
                for entry in turn.entries.iter().take(heard) {
                    w.tell(entry.payload[0]);
                }
                if asleep {
                    w.sleep();
                } else if turn.again {
                    w.reading = Reading::Wanted;
                } else if self.protocol == Protocol::Forgetful {
                    w.replay = Replay::new(w.replay.at());
                }
            }
            Act::Look => w.look = Some(w.position(w.head())),
            Act::HearLook => {
                let head = w.look.take().expect("only offered when there is one");
                let ignored = self.protocol == Protocol::LowHeadsIgnored && head.offset < w.replay.at().offset;
                if !ignored && w.replay.behind(head) {
                    w.reading = Reading::Wanted;
                }
            }
            Act::Sleep => w.sleep(),
        }
    }

    /// What comes of a world in which nothing more happens and all that was under way is lost: the listener is awake,
    /// and looks at the head until two looks in a row ask for nothing.
    fn quiet(&self, world: &World) -> World {
        let mut w = World { flying: 0, look: None, ..world.clone() };
        let (mut steps, mut looks) = (0, 0);
        while looks < 2 && steps < 60 {
            steps += 1;
            let act = match &w.reading {
                _ if !w.awake => Act::Wake(true),
                Reading::Wanted => Act::Read,
                Reading::Page(..) => Act::Take(PAGE, false),
                Reading::No if !w.subscribed => Act::Subscribe,
                Reading::No if self.protocol == Protocol::NoLook => break,
                Reading::No if w.look.is_none() => Act::Look,
                Reading::No => Act::HearLook,
            };
            looks += usize::from(act == Act::HearLook);
            self.step(&mut w, act);
            if w.reading != Reading::No {
                looks = 0;
            }
        }
        w
    }
}

impl Model for HandOver {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let start = Written { position: Position::START, parent: 0 };
        vec![World {
            written: vec![start],
            kept: Vec::new(),
            flying: 0,
            replay: Replay::new(Position::START),
            awake: false,
            subscribed: false,
            reading: Reading::No,
            look: None,
            judge: Judge { last: 0, told: 0, stood: 1, wrong: None },
            fail_overs: 0,
            naps: 0,
        }]
    }

    fn actions(&self, w: &World, acts: &mut Vec<Act>) {
        if w.judge.wrong.is_some() {
            return;
        }
        if w.written.len() <= self.bounds.writes {
            acts.push(Act::Append);
            if self.protocol == Protocol::RetriedOverFailOver && w.fail_overs > 0 {
                // A history that has the nonce adds nothing.
                let has: Vec<u64> = w.ancestors(w.head()).map(|of| w.position(of).nonce).collect();
                let lost = (1..w.written.len() as u8).filter(|of| !has.contains(&w.position(*of).nonce));
                acts.extend(lost.map(Act::Retry));
            }
        }
        if w.kept.len() > 1 {
            acts.push(Act::Trim);
        }
        if w.fail_overs < self.bounds.fail_overs && !w.kept.is_empty() {
            acts.push(Act::Empty);
            for newest in w.ancestors(w.head()).skip(1).filter(|at| *at != 0) {
                acts.push(Act::FailOver(newest, true));
                if w.kept.contains(&newest) {
                    acts.push(Act::FailOver(newest, false));
                }
            }
        }
        for of in (1..w.written.len() as u8).filter(|of| w.flying & 1 << of != 0) {
            // While it reads, what arrives waits in its mailbox.
            if w.reading == Reading::No {
                acts.push(Act::Deliver(of, false));
                if w.subscribed {
                    acts.push(Act::Deliver(of, true));
                }
            }
        }
        if !w.awake {
            acts.push(Act::Wake(true));
            if w.naps == 0 {
                acts.push(Act::Wake(false));
            }
            return;
        }
        let may_sleep = w.naps < self.bounds.naps;
        match &w.reading {
            Reading::Wanted => acts.push(Act::Read),
            Reading::Page(page, _) => {
                acts.push(Act::Take(PAGE, false));
                let turn = w.replay.clone().page(page.clone(), PAGE);
                if may_sleep {
                    let least = usize::from(turn.gap.is_none());
                    acts.extend((least..turn.entries.len()).map(|heard| Act::Take(heard, true)));
                }
            }
            Reading::No if w.subscribed && w.look.is_some() => acts.push(Act::HearLook),
            Reading::No if !w.subscribed => acts.push(Act::Subscribe),
            Reading::No => {}
        }
        if may_sleep {
            acts.push(Act::Sleep);
        }
        if w.look.is_none() && w.subscribed && self.protocol != Protocol::NoLook {
            acts.push(Act::Look);
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut next = world.clone();
        self.step(&mut next, act);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(TWICE, |_, w: &World| w.judge.wrong != Some(Wrong::Twice)),
            Property::always(SKIPS, |_, w: &World| w.judge.wrong != Some(Wrong::SkippedInSilence)),
            Property::always("a count is exact in one history", |_, w: &World| {
                w.judge.wrong != Some(Wrong::Miscounted)
            }),
            Property::always("a gap comes with what follows it", |_, w: &World| {
                w.judge.wrong != Some(Wrong::GapAlone)
            }),
            Property::always("no gap without a loss", |_, w: &World| w.judge.wrong != Some(Wrong::NeedlessGap)),
            Property::always(STALLS, |_, w: &World| {
                let idle = w.awake && w.subscribed && w.reading == Reading::No && w.flying == 0;
                !idle || w.fail_overs > 0 || w.judge.last == w.head()
            }),
            Property::always(UNTOLD, |model: &HandOver, w: &World| {
                let w = model.quiet(w);
                let all = if w.kept.is_empty() { w.replay.at() == Position::START } else { w.judge.last == w.head() };
                w.reading == Reading::No && w.judge.wrong.is_none() && all
            }),
            Property::sometimes("a counted gap is told", |_, w: &World| {
                w.gap_under_way().is_some_and(|gap| gap.lost.is_some())
            }),
            Property::sometimes("a doubled delivery arrives", |_, w: &World| {
                w.subscribed && (1..w.written.len()).any(|of| w.flying & w.judge.told & 1 << of != 0)
            }),
        ];
        if self.bounds.fail_overs > 0 {
            all.push(Property::sometimes("an uncounted gap is told", |_, w: &World| {
                w.gap_under_way().is_some_and(|gap| gap.lost.is_none())
            }));
        }
        all
    }
}

const FEW: Bounds = Bounds { writes: 4, fail_overs: 1, naps: 1 };

fn assert_holds(bounds: Bounds) {
    let checker = HandOver { protocol: Protocol::Shipped, bounds }.checker().threads(2).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{bounds:?}: {states} states, {depth} deep, {} properties", checker.model().properties().len());
    checker.assert_properties();
}

/// Asserts that the checker finds how this goes wrong, and says the shortest way.
fn assert_fails(protocol: Protocol, bounds: Bounds, property: &'static str) {
    let model = HandOver { protocol, bounds };
    for depth in 1..=14 {
        let checker = model.clone().checker().finish_when(HasDiscoveries::AnyOf([property].into()));
        let checker = checker.target_max_depth(depth).spawn_bfs().join();
        if let Some(path) = checker.discovery(property) {
            let states = checker.unique_state_count();
            return println!("{protocol:?}: {states} states until \"{property}\" fails: {:?}", path.into_actions());
        }
    }
    panic!("{protocol:?} is not found out");
}

#[test]
fn many_naps_in_one_history() {
    assert_holds(Bounds { writes: 4, fail_overs: 0, naps: 2 });
}

#[test]
fn a_history_that_parts() {
    assert_holds(Bounds { naps: 0, ..FEW });
}

#[test]
fn a_history_that_parts_twice() {
    assert_holds(Bounds { writes: 3, fail_overs: 2, naps: 1 });
}

#[test]
fn reading_before_subscribing_stalls() {
    assert_fails(Protocol::ReadThenSubscribe, FEW, STALLS);
}

#[test]
fn telling_by_offset_skips() {
    assert_fails(Protocol::ByOffset, FEW, SKIPS);
}

#[test]
fn without_looks_a_lost_last_event_stays_lost() {
    assert_fails(Protocol::NoLook, FEW, UNTOLD);
}

#[test]
fn a_lost_tail_shows_by_a_low_head_only() {
    assert_fails(Protocol::LowHeadsIgnored, FEW, UNTOLD);
}

#[test]
fn without_stepping_back_what_both_histories_have_is_told_twice() {
    assert_fails(Protocol::Forgetful, Bounds { writes: 3, naps: 0, ..FEW }, TWICE);
}

#[test]
fn an_offset_without_nonce_names_nothing() {
    assert_fails(Protocol::KnownByOffset, FEW, UNTOLD);
}

/// What the protocol does not see: two entries are lost, another takes the place of the first, and the second is
/// written again under its old nonce and at its old offset. A listener that had heard both believes to know it.
#[test]
fn a_retry_over_a_fail_over_can_hide_an_entry() {
    assert_fails(Protocol::RetriedOverFailOver, FEW, UNTOLD);
}
