//! A replay under generated schedules of all that can happen to a history and its listener.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;

use super::{tests::look, *};

/// What happens to a history and its listener.
#[derive(Debug, Clone, Copy)]
enum Step {
    Append(usize),
    /// Live deliveries are lost.
    Lose(usize),
    /// One is delivered; if true, it comes again.
    Deliver(usize, bool),
    Trim(usize),
    /// A fail-over: the newest entries are lost, and if true, what was trimmed is there again.
    LoseTail(usize, bool),
    Empty,
    /// An entry is taken out of the middle.
    Damage(usize),
    Look,
    HearLook,
    /// The listener goes and comes back with its cursor.
    Nap,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1usize..5).prop_map(Step::Append),
        2 => (1usize..5).prop_map(Step::Lose),
        8 => (0usize..6, prop::bool::weighted(0.2)).prop_map(|(at, again)| Step::Deliver(at, again)),
        2 => (1usize..4).prop_map(Step::Trim),
        1 => (1usize..14, any::<bool>()).prop_map(|(n, untrimmed)| Step::LoseTail(n, untrimmed)),
        1 => Just(Step::Empty),
        1 => (0usize..8).prop_map(Step::Damage),
        2 => Just(Step::Look),
        2 => Just(Step::HearLook),
        1 => Just(Step::Nap),
    ];
    prop::collection::vec(step, 1..120)
}

/// A history, its listener, and what was told.
#[derive(Default)]
struct World {
    /// Everything that was ever written, by its place: its predecessor.
    written: HashMap<Position, Position>,
    kept: Vec<Entry>,
    trimmed: Vec<Entry>,
    live: Vec<Entry>,
    replay: Option<Replay>,
    look: Option<Position>,
    last: Position,
    told: HashSet<Position>,
    /// Where the listener stood, newest last, as far as it remembers.
    stood: VecDeque<Position>,
    damaged: bool,
}

impl World {
    fn head(&self) -> Position {
        self.kept.last().map_or(Position::START, |e| e.position)
    }

    fn ancestors(&self, of: Position) -> impl Iterator<Item = Position> {
        std::iter::successors(Some(of), |at| self.written.get(at).copied())
    }

    fn replay(&mut self) -> &mut Replay {
        self.replay.get_or_insert(Replay::new(Position::START))
    }

    fn stand(&mut self, at: Position) {
        self.last = at;
        self.stood.push_back(at);
        if self.stood.len() > REMEMBERED + 1 {
            self.stood.pop_front();
        }
    }

    fn tell(&mut self, entry: &Entry) {
        assert_eq!(entry.previous, self.last, "skipped in silence");
        assert!(self.told.insert(entry.position), "told twice");
        self.stand(entry.position);
    }

    fn tell_gap(&mut self, gap: Gap) {
        let between = self.ancestors(gap.at).position(|at| at == self.last);
        match (gap.lost, between) {
            (Some(lost), Some(between)) => assert_eq!(lost, between as u64),
            (Some(lost), None) => {
                let untold = self.ancestors(gap.at).filter(|at| !self.told.contains(at)).count() as u64;
                assert!(lost < untold, "the start is among them, and nothing to tell");
            }
            (None, _) => {
                let same = self.ancestors(self.head()).any(|at| at == self.last);
                assert!(self.damaged || self.kept.is_empty() || !same, "nothing was lost");
                let has = |at: &Position| {
                    look(&self.kept, *at, 0).known || self.kept.first().is_some_and(|e| e.previous == *at)
                };
                if self.stood.iter().any(has) {
                    // What was lost may come again, late and live, where it fits.
                    let both: HashSet<_> = self.ancestors(self.head()).collect();
                    self.told.retain(|at| both.contains(at));
                } else {
                    // It parted further back than is remembered.
                    self.told.clear();
                    self.stood.clear();
                }
            }
        }
        self.stand(gap.at);
    }

    fn read(&mut self) {
        for _ in 0..500 {
            let at = self.replay().at();
            let page = look(&self.kept, at, 3);
            let turn = self.replay().page(page, 3);
            assert!(turn.gap.is_none() || !turn.entries.is_empty() || !turn.again, "a gap without what follows");
            if let Some(gap) = turn.gap {
                self.tell_gap(gap);
            }
            for entry in &turn.entries {
                self.tell(entry);
            }
            if !turn.again {
                return;
            }
        }
        panic!("it reads for ever");
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(n) => {
                for _ in 0..n {
                    let previous = self.head();
                    let nonce = 1 + self.written.len() as u64;
                    let position = Position { offset: previous.offset + 1, nonce };
                    let entry = Entry { position, previous, payload: Bytes::new() };
                    self.written.insert(position, previous);
                    self.kept.push(entry.clone());
                    self.live.push(entry);
                }
            }
            Step::Lose(n) => drop(self.live.drain(..n.min(self.live.len()))),
            Step::Deliver(at, again) => {
                let Some(entry) = self.live.get(at).cloned() else { return };
                if !again {
                    self.live.remove(at);
                }
                match self.replay().admit(entry.position, entry.previous) {
                    Admit::Next => self.tell(&entry),
                    Admit::Known => {}
                    Admit::Missing => self.read(),
                }
            }
            Step::Trim(n) => {
                let most = self.kept.len().saturating_sub(1);
                self.trimmed.extend(self.kept.drain(..n.min(most)));
            }
            Step::LoseTail(n, untrimmed) => {
                let left = self.kept.len().saturating_sub(n).max(1);
                self.kept.truncate(left);
                if untrimmed && !self.kept.is_empty() {
                    self.kept.splice(0..0, self.trimmed.drain(..));
                }
            }
            Step::Empty => {
                self.kept.clear();
                self.trimmed.clear();
            }
            Step::Damage(at) => {
                if (1..self.kept.len().saturating_sub(1)).contains(&at) {
                    self.kept.remove(at);
                    self.damaged = true;
                }
            }
            Step::Look => self.look = Some(self.head()),
            Step::HearLook => {
                if let Some(head) = self.look.take()
                    && self.replay().behind(head)
                {
                    self.read();
                }
            }
            Step::Nap => {
                self.look = None;
                self.stood = [self.last].into();
                self.replay = Some(Replay::new(self.replay().at()));
                self.read();
            }
        }
    }
}

proptest! {
    /// Live deliveries are lost, doubled and delayed as it may be, looks are stale, the history is trimmed, loses
    /// its tail, is emptied or damaged in between: every entry is told once and in order, or was announced as
    /// lost; twice only after a gap, when the history parted further back than is remembered; two looks at the head are enough to be told everything.
    #[test]
    fn nothing_is_lost_in_silence(steps in steps()) {
        let mut world = World::default();
        for step in steps {
            world.step(step);
        }
        for step in [Step::Look, Step::HearLook, Step::Look, Step::HearLook] {
            world.step(step);
        }
        let head = world.head();
        prop_assert_eq!(world.replay().at(), head);
        prop_assert_eq!(world.last, head);
    }
}
