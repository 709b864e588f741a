//! Replay then live, without a seam. Pure: it is told what arrived and says what to do.
//!
//! Safety comes from the chain: every entry names its predecessor, and an entry is admitted only behind exactly that
//! one. Whatever else arrives is either known already or a reason to read the history after the last admitted entry.
//! A look at the newest position now and then finds what no live entry reveals: a last entry that was lost on the way,
//! and a history that lost its tail.
//!
//! A history that lost its tail and went on parts from the one that was told. Where, shows by stepping back through the
//! last positions that were told, until one is an entry of it: after a gap of unknown size, what follows that one is
//! told, and nothing twice. Only when it parted further back than is remembered (who woke with a cursor remembers no
//! more than that) it is told from its oldest entry on, also what was told before. `tests/model_replay.rs` walks
//! through every order of steps.

use std::ops::RangeInclusive;

use crate::{
    broker::{Entry, Page},
    protocol::Position,
};

/// How many positions that were told are remembered behind the last one: as many reads more, at most, find where a
/// history parted. Events are few a second, and a fail-over loses what was written within about one.
const REMEMBERED: usize = 8;

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
    /// How many, as offsets count them. Exact as long as the history is the one that the listener knew; if it parted from that one unnoticed
    /// and was trimmed since, at least as many. `None` when it shows that the history is another.
    pub lost: Option<u64>,
    /// Where a listener stands that heard of it: going on from here hears of no gap again.
    pub at: Position,
}

/// What to do with a page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Turn {
    /// Told before the entries; it never comes without them while there are any.
    pub gap: Option<Gap>,
    /// Told in this order.
    pub entries: Vec<Entry>,
    /// Whether the history must be read once more, after [`Replay::at`], before anything else is heard.
    pub again: bool,
}

/// Where a listener stands in a history.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Replay {
    at: Position,
    /// Where it stood before that, newest last: at most [`REMEMBERED`]. Most listeners have heard nothing yet, and are
    /// not to cost more for that.
    before: Vec<Position>,
    /// The history turned out to be another: that is told together with what follows.
    parted: bool,
    /// Where it stood when the last look showed a head below it.
    odd: Option<Position>,
}

impl Replay {
    /// Behind `at`.
    #[must_use]
    pub fn new(at: Position) -> Self {
        Self { at, before: Vec::new(), parted: false, odd: None }
    }

    /// The position of the last admitted entry; while a history that parted is read, where the reading goes on.
    #[must_use]
    pub fn at(&self) -> Position {
        self.at
    }

    /// A live entry arrived.
    pub fn admit(&mut self, position: Position, previous: Position) -> Admit {
        if previous == self.at {
            self.advance(position);
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

    /// Whether this page shows that the history is another one than was heard so far: it may be about to be repaired.
    #[must_use]
    pub fn parts(&self, page: &Page) -> bool {
        let parts = match page.oldest {
            None => self.at != Position::START,
            Some((_, previous)) => !page.known && previous != self.at && previous.offset <= self.at.offset,
        };
        parts && !self.parted
    }

    /// The history after [`Replay::at`] was read; `limit` is what was asked for.
    pub fn page(&mut self, page: Page, limit: usize) -> Turn {
        let Some((oldest, previous)) = page.oldest else {
            // Nothing is kept. What was, can't be counted any more.
            let parted = self.parted || self.at != Position::START;
            *self = Self::new(Position::START);
            let gap = parted.then_some(Gap { lost: None, at: self.at });
            return Turn { gap, entries: Vec::new(), again: false };
        };
        if page.known || previous == self.at {
            return self.follow(page.entries, limit);
        }
        let ahead = oldest.offset <= self.at.offset;
        let mut gap = None;
        // Offsets need not count by one: what lies between ends where the oldest entry's predecessor stood.
        if previous.offset > self.at.offset {
            gap = Some(Gap { lost: Some(previous.offset - self.at.offset), at: previous });
            self.advance(previous);
        } else {
            // The offsets fit but the entry is another: this is not the history that the listener knew.
            self.parted = true;
            if self.step_back(previous.offset..=page.head.offset) {
                return Turn { gap: None, entries: Vec::new(), again: true };
            }
            self.at = previous;
            // Entries above an offset of another history were left out of this page: read from its beginning.
            if ahead {
                return Turn { gap: None, entries: Vec::new(), again: true };
            }
        }
        let turn = self.follow(page.entries, limit);
        Turn { gap: turn.gap.or(gap), ..turn }
    }

    fn advance(&mut self, to: Position) {
        if self.before.len() == REMEMBERED {
            self.before.remove(0);
        }
        self.before.push(self.at);
        self.at = to;
    }

    /// Stands where it stood before, as far back as an entry within `kept` can be; false when it never stood there.
    fn step_back(&mut self, kept: RangeInclusive<u64>) -> bool {
        while let Some(before) = self.before.pop() {
            self.at = before;
            if kept.contains(&self.at.offset) {
                return true;
            }
        }
        false
    }

    /// Entries of one look, of which the first should follow where it stands.
    fn follow(&mut self, entries: Vec<Entry>, limit: usize) -> Turn {
        let again = entries.len() >= limit;
        let mut gap = std::mem::take(&mut self.parted).then_some(Gap { lost: None, at: self.at });
        let mut chain = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.previous != self.at {
                // A page is one atomic look, so this history is damaged: entries were taken out of its middle. What
                // is sound is told first; the page after that begins with the hole.
                if !chain.is_empty() {
                    return Turn { gap, entries: chain, again: true };
                }
                let lost = entry.previous.offset.checked_sub(self.at.offset).filter(|lost| *lost > 0);
                gap = Some(Gap { lost: lost.filter(|_| gap.is_none()), at: entry.previous });
                self.advance(entry.previous);
            }
            self.advance(entry.position);
            chain.push(entry);
        }
        Turn { gap, entries: chain, again }
    }
}

#[cfg(test)]
mod schedules;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn history(n: u64, nonce: u64) -> Vec<Entry> {
        let at = |offset| if offset == 0 { Position::START } else { Position { offset, nonce: nonce + offset } };
        (1..=n).map(|o| Entry { position: at(o), previous: at(o - 1), payload: Bytes::new() }).collect()
    }

    fn parted(at: Position) -> Gap {
        Gap { lost: None, at }
    }

    /// All that comes of reading, and the number of reads.
    fn read(replay: &mut Replay, kept: &[Entry], limit: usize) -> (Turn, usize) {
        let mut all = Turn { gap: None, entries: Vec::new(), again: false };
        for reads in 1..100 {
            let turn = replay.page(look(kept, replay.at(), limit), limit);
            assert!(turn.gap.is_none() || all.gap.is_none(), "a gap is told once");
            assert!(turn.gap.is_none() || !turn.entries.is_empty() || !turn.again, "a gap comes with what follows");
            all.gap = all.gap.or(turn.gap);
            all.entries.extend(turn.entries);
            if !turn.again {
                return (all, reads);
            }
        }
        panic!("it reads for ever");
    }

    /// What a back end answers from a history of which the first `trimmed` entries are gone.
    pub(super) fn look(kept: &[Entry], after: Position, limit: usize) -> Page {
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
            let (turn, reads) = read(&mut replay, &new, 100);
            assert_eq!((turn.gap, turn.entries, reads), (Some(parted(Position::START)), new.clone(), 2), "at {at}");
        }
        let mut replay = Replay::new(old[3].position);
        assert_eq!(read(&mut replay, &[], 100).0.gap, Some(parted(Position::START)));
        assert_eq!(read(&mut replay, &[], 100).0.gap, None);
    }

    #[test]
    fn a_history_that_parted_is_told_from_where_it_did() {
        let old = history(30, 100);
        for (common, told_twice) in [(29, false), (22, false), (21, true), (0, true)] {
            for more in [0, 1, 40] {
                let mut new = history(common + more, 900);
                new[..common as usize].clone_from_slice(&old[..common as usize]);
                if let (Some(last), Some(first)) = (old[..common as usize].last(), new.get_mut(common as usize)) {
                    first.previous = last.position;
                }
                if new.is_empty() {
                    continue;
                }
                let mut replay = Replay::new(old[19].position);
                for entry in &old[20..] {
                    assert_eq!(replay.admit(entry.position, entry.previous), Admit::Next);
                }
                // It was at the twentieth when it woke, and remembers eight behind the last.
                let (turn, reads) = read(&mut replay, &new, 100);
                let from = if told_twice { 0 } else { common as usize };
                let at = if told_twice { Position::START } else { old[from - 1].position };
                assert_eq!((turn.gap, &turn.entries[..]), (Some(parted(at)), &new[from..]), "{common} and {more}");
                assert!(reads <= REMEMBERED + 2, "{reads} reads");
                assert_eq!(read(&mut replay, &new, 100).0, Turn { gap: None, entries: Vec::new(), again: false });
            }
        }
    }

    #[test]
    fn what_parted_and_was_trimmed_is_told_from_what_is_kept() {
        let (old, mut new) = (history(9, 100), history(12, 900));
        new[5].previous = old[4].position;
        let mut replay = Replay::new(old[2].position);
        for entry in &old[3..] {
            replay.admit(entry.position, entry.previous);
        }
        // The fork is just before the oldest entry: nothing between is missing.
        let mut there = replay.clone();
        assert_eq!(
            read(&mut there, &new[5..], 100).0,
            Turn { gap: Some(parted(old[4].position)), entries: new[5..].into(), again: false }
        );
        let (turn, _) = read(&mut replay, &new[7..], 100);
        assert_eq!((turn.gap, &turn.entries[..]), (Some(parted(new[6].position)), &new[7..]));
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
}
