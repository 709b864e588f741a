//! Replay then live, without a seam. Pure: it is told what arrived and says what to do.
//!
//! Safety comes from the chain: every entry names its predecessor, and an entry is admitted only behind exactly that
//! one. Whatever else arrives is either known already or a reason to read the history after the last admitted entry.

use crate::{
    broker::{Entry, Page},
    protocol::Position,
};

/// What to do with a live entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admit {
    /// Tell it: it is the next one.
    Next,
    /// Ignore it: it was told.
    Known,
    /// Read the history: something before it is missing.
    Missing,
}

/// Some events can't be told: as many, or an unknown number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap(pub(super) Option<u64>);

/// What to do with a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// Told before the entries.
    pub(super) gap: Option<Gap>,
    /// Told in this order.
    pub(super) entries: Vec<Entry>,
    /// Whether the history must be read once more.
    pub(super) again: bool,
}

/// Where a listener stands in a history.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replay {
    at: Position,
}

impl Replay {
    /// Behind `at`.
    pub(super) fn new(at: Position) -> Self {
        Self { at }
    }

    /// The position of the last admitted entry.
    pub(super) fn at(&self) -> Position {
        self.at
    }

    /// A live entry arrived.
    pub(super) fn admit(&mut self, position: Position, previous: Position) -> Admit {
        if previous == self.at {
            self.at = position;
            Admit::Next
        } else if position == self.at || position.offset < self.at.offset {
            Admit::Known
        } else {
            Admit::Missing
        }
    }

    /// A look at the history showed its newest position: whether something is missing.
    pub(super) fn behind(&self, head: Position) -> bool {
        // A look taken before the last live entry shows an older head: that is no news.
        head.offset > self.at.offset || (head.offset == self.at.offset && head.nonce != self.at.nonce)
    }

    /// The history after [`Replay::at`] was read; `limit` is what was asked for.
    pub(super) fn page(&mut self, page: Page, limit: usize) -> Turn {
        let Some((oldest, before)) = page.oldest else {
            // Nothing is kept. What was, can't be counted any more.
            let gap = (self.at != Position::START).then_some(Gap(None));
            self.at = Position::START;
            return Turn { gap, entries: Vec::new(), again: false };
        };
        if page.known || before == self.at {
            return self.follow(page.entries, limit);
        }
        let gap = if oldest.offset > self.at.offset.saturating_add(1) {
            Gap(Some(oldest.offset - self.at.offset - 1))
        } else {
            // The offsets fit but the entry is another: this is not the history that the listener knew.
            Gap(None)
        };
        let ahead = oldest.offset <= self.at.offset;
        self.at = before;
        // Entries above an offset of another history were left out of this page: read from its beginning.
        let entries = if ahead { Vec::new() } else { page.entries };
        let turn = self.follow(entries, limit);
        Turn { gap: Some(gap), again: turn.again || ahead, ..turn }
    }

    fn follow(&mut self, entries: Vec<Entry>, limit: usize) -> Turn {
        let again = entries.len() >= limit;
        let mut chain = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.previous != self.at {
                // A page is one atomic look, so this is a broken history: start again behind what is sound.
                return Turn { gap: None, entries: chain, again: true };
            }
            self.at = entry.position;
            chain.push(entry);
        }
        Turn { gap: None, entries: chain, again }
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
        assert_eq!(turn.gap, Some(Gap(Some(4))));
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
            assert_eq!((turn.gap, turn.again), (Some(Gap(None)), true), "at {at}");
            assert_eq!(replay.page(look(&new, replay.at(), 100), 100).entries, new);
        }
        let mut replay = Replay::new(old[3].position);
        assert_eq!(replay.page(look(&[], replay.at(), 100), 100).gap, Some(Gap(None)));
    }

    proptest! {
        /// Live deliveries are lost, doubled and delayed as it may be, reads come when they come, the history is
        /// trimmed in between: every entry is told once and in order, or was announced as lost.
        #[test]
        fn nothing_is_lost_in_silence(steps in prop::collection::vec((0u8..6, 1usize..5), 1..80)) {
            let all = history(400, 1_000);
            let (mut written, mut trimmed) = (0usize, 0usize);
            let mut live: Vec<Entry> = Vec::new();
            let mut replay = Replay::new(Position::START);
            let (mut told, mut lost, mut behind) = (Vec::new(), 0, false);
            let settle = |replay: &mut Replay, told: &mut Vec<u64>, lost: &mut u64, kept: &[Entry]| loop {
                let turn = replay.page(look(kept, replay.at(), 3), 3);
                if let Some(Gap(count)) = turn.gap { *lost += count.expect("one history only"); }
                told.extend(turn.entries.iter().map(|e| e.position.offset));
                if !turn.again { break; }
            };
            for (what, n) in steps {
                match what {
                    0 | 1 => for entry in &all[written..(written + n).min(all.len())] { live.push(entry.clone()); written += 1; },
                    2 => { live.drain(..n.min(live.len())); }
                    3 => trimmed = (trimmed + n).min(written.saturating_sub(1)),
                    _ => for entry in live.drain(..n.min(live.len())) {
                        match replay.admit(entry.position, entry.previous) {
                            Admit::Next => told.push(entry.position.offset),
                            Admit::Known => {}
                            Admit::Missing => behind = true,
                        }
                        if std::mem::take(&mut behind) {
                            settle(&mut replay, &mut told, &mut lost, &all[trimmed..written]);
                        }
                    },
                }
            }
            // The periodic look at the head finds what no live entry revealed.
            let head = if written == 0 { Position::START } else { all[written - 1].position };
            if replay.behind(head) {
                settle(&mut replay, &mut told, &mut lost, &all[trimmed..written]);
            }
            prop_assert!(told.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(told.len() as u64 + lost, written as u64);
        }
    }
}
