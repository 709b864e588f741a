//! Replay then live, without a seam. Pure: it is told what arrived and says what to do.
//!
//! Safety comes from the chain: every entry names its predecessor, and an entry is admitted only behind exactly that
//! one. Whatever else arrives is either known already or a reason to read the history after the last admitted entry.
//! A look at the newest position now and then finds what no live entry reveals: a last entry that was lost on the way,
//! and a history that lost its tail.
//!
//! After a gap of unknown size the history is told from its oldest entry on, also what was told before: where the
//! listener's history and this one part can't be known. `tests/model_replay.rs` walks through every order of steps.

use crate::{
    broker::{Entry, Page},
    protocol::Position,
};

/// What to do with a live entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Admit {
    /// Tell it: it is the next one.
    Next,
    /// Ignore it: it was told.
    Known,
    /// Read the history: something before it is missing.
    Missing,
}

/// Some events can't be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gap {
    /// How many. Exact as long as the history is the one that the listener knew; if it parted from that one unnoticed
    /// and was trimmed since, at least as many. `None` when it shows that the history is another.
    pub lost: Option<u64>,
    /// Where a listener stands that heard of it: going on from here hears of no gap again.
    pub at: Position,
}

/// What to do with a page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Turn {
    /// Told before the entries.
    pub gap: Option<Gap>,
    /// Told in this order.
    pub entries: Vec<Entry>,
    /// Whether the history must be read once more.
    pub again: bool,
}

/// Where a listener stands in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Replay {
    at: Position,
    /// Where it stood when the last look showed a head below it.
    odd: Option<Position>,
}

impl Replay {
    /// Behind `at`.
    #[must_use]
    pub fn new(at: Position) -> Self {
        Self { at, odd: None }
    }

    /// The position of the last admitted entry.
    #[must_use]
    pub fn at(&self) -> Position {
        self.at
    }

    /// A live entry arrived.
    pub fn admit(&mut self, position: Position, previous: Position) -> Admit {
        if previous == self.at {
            self.at = position;
            Admit::Next
        } else if position == self.at || position.offset < self.at.offset {
            Admit::Known
        } else {
            Admit::Missing
        }
    }

    /// A look at the history showed its newest position: whether the history must be read.
    ///
    /// A look that was taken before the last live entry shows an older head: once, that is no news. A listener that
    /// has not moved by the next look, and is still ahead of the history, has heard what the history lost.
    pub fn behind(&mut self, head: Position) -> bool {
        let below = head.offset < self.at.offset;
        let again = below && self.odd == Some(self.at);
        // Whatever the reading shows, it takes two more looks to ask for another.
        self.odd = (below && !again).then_some(self.at);
        again || head.offset > self.at.offset || (head.offset == self.at.offset && head.nonce != self.at.nonce)
    }

    /// The history after [`Replay::at`] was read; `limit` is what was asked for.
    pub fn page(&mut self, page: Page, limit: usize) -> Turn {
        let Some((oldest, before)) = page.oldest else {
            // Nothing is kept. What was, can't be counted any more.
            let gap = (self.at != Position::START).then_some(Gap { lost: None, at: Position::START });
            self.at = Position::START;
            return Turn { gap, entries: Vec::new(), again: false };
        };
        if page.known || before == self.at {
            return self.follow(page.entries, limit);
        }
        let lost = if oldest.offset > self.at.offset.saturating_add(1) {
            Some(oldest.offset - self.at.offset - 1)
        } else {
            // The offsets fit but the entry is another: this is not the history that the listener knew.
            None
        };
        let ahead = oldest.offset <= self.at.offset;
        self.at = before;
        // Entries above an offset of another history were left out of this page: read from its beginning.
        let entries = if ahead { Vec::new() } else { page.entries };
        let turn = self.follow(entries, limit);
        Turn { gap: Some(Gap { lost, at: before }), again: turn.again || ahead, ..turn }
    }

    fn follow(&mut self, entries: Vec<Entry>, limit: usize) -> Turn {
        let again = entries.len() >= limit;
        let mut gap = None;
        let mut chain = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.previous != self.at {
                // A page is one atomic look, so this history is damaged: entries were taken out of its middle. What
                // is sound is told first; the page after that begins with the hole.
                if !chain.is_empty() {
                    return Turn { gap, entries: chain, again: true };
                }
                let lost = entry.previous.offset.checked_sub(self.at.offset).filter(|lost| *lost > 0);
                gap = Some(Gap { lost, at: entry.previous });
            }
            self.at = entry.position;
            chain.push(entry);
        }
        Turn { gap, entries: chain, again }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn history(n: u64, nonce: u64) -> Vec<Entry> {
        let at = |offset| if offset == 0 { Position::START } else { Position { offset, nonce: nonce + offset } };
        (1..=n).map(|o| Entry { position: at(o), previous: at(o - 1), payload: Bytes::new() }).collect()
    }

    const ANOTHER: Gap = Gap { lost: None, at: Position::START };

    /// What a back end answers from a history of which the first `trimmed` entries are gone.
    fn look(kept: &[Entry], after: Position, limit: usize) -> Page {
        Page {
            entries: kept.iter().filter(|e| e.position.offset > after.offset).take(limit).cloned().collect(),
            known: kept.iter().any(|e| e.position == after),
            oldest: kept.first().map(|e| (e.position, e.previous)),
            head: kept.last().map_or(Position::START, |e| e.position),
        }
    }

    #[test]
    fn trimmed_entries_are_counted() {
        let all = history(10, 100);
        let mut replay = Replay::new(all[1].position);
        let turn = replay.page(look(&all[6..], replay.at(), 100), 100);
        assert_eq!(turn.gap, Some(Gap { lost: Some(4), at: all[5].position }));
        assert_eq!(turn.entries, all[6..]);
        // The cursor's own entry is gone, but nothing after it: no gap.
        let mut replay = Replay::new(all[5].position);
        assert_eq!(replay.page(look(&all[6..], replay.at(), 100), 100).gap, None);
    }

    #[test]
    fn another_history_is_told_and_not_mixed_in() {
        let (old, new) = (history(10, 100), history(8, 900));
        for at in [3, 7, 9] {
            let mut replay = Replay::new(old[at].position);
            let turn = replay.page(look(&new, replay.at(), 100), 100);
            assert_eq!((turn.gap, turn.again), (Some(ANOTHER), true), "at {at}");
            assert_eq!(replay.page(look(&new, replay.at(), 100), 100).entries, new);
        }
        let mut replay = Replay::new(old[3].position);
        assert_eq!(replay.page(look(&[], replay.at(), 100), 100).gap, Some(ANOTHER));
    }

    #[test]
    fn a_low_head_counts_when_it_is_seen_twice_from_one_place() {
        let all = history(10, 100);
        let at = |offset: usize| all[offset - 1].position;
        let mut replay = Replay::new(at(5));
        // A look that is older than the last entry, then one that is not.
        assert_eq!((replay.behind(at(4)), replay.behind(at(5))), (false, false));
        // The listener moved between.
        assert!(!replay.behind(at(4)));
        assert_eq!(replay.admit(at(6), at(5)), Admit::Next);
        assert!(!replay.behind(at(5)));
        // The history lost its tail, or everything; having said so once, it takes two looks again.
        assert_eq!((replay.behind(at(5)), replay.behind(Position::START)), (true, false));
        assert!(replay.behind(at(5)));
    }

    #[test]
    fn a_hole_is_counted_and_passed() {
        let mut damaged = history(9, 100);
        damaged.drain(3..5);
        let mut replay = Replay::new(damaged[0].position);
        let first = replay.page(look(&damaged, replay.at(), 100), 100);
        assert_eq!((first.gap, first.entries.len(), first.again), (None, 2, true));
        let second = replay.page(look(&damaged, replay.at(), 100), 100);
        assert_eq!(second.gap, Some(Gap { lost: Some(2), at: damaged[3].previous }));
        assert_eq!((second.entries.len(), second.again), (4, false));
    }

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
            1 => (1usize..5, any::<bool>()).prop_map(|(n, untrimmed)| Step::LoseTail(n, untrimmed)),
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
        written: std::collections::HashMap<Position, Position>,
        kept: Vec<Entry>,
        trimmed: Vec<Entry>,
        live: Vec<Entry>,
        replay: Option<Replay>,
        look: Option<Position>,
        last: Position,
        told: std::collections::HashSet<Position>,
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

        fn tell(&mut self, entry: &Entry) {
            assert_eq!(entry.previous, self.last, "skipped in silence");
            assert!(self.told.insert(entry.position), "told twice");
            self.last = entry.position;
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
                    self.told.clear();
                }
            }
            self.last = gap.at;
        }

        fn read(&mut self) {
            for _ in 0..500 {
                let at = self.replay().at();
                let page = look(&self.kept, at, 3);
                let turn = self.replay().page(page, 3);
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
                    self.replay = Some(Replay::new(self.replay().at()));
                    self.read();
                }
            }
        }
    }

    proptest! {
        /// Live deliveries are lost, doubled and delayed as it may be, looks are stale, the history is trimmed, loses
        /// its tail, is emptied or damaged in between: every entry is told once and in order, or was announced as
        /// lost; two looks at the head are enough to be told everything.
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
}
