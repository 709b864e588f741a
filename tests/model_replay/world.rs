//! The world of the hand-over model: a history, the network, a listener, and a judge who knows what was written.

use bytes::Bytes;
use sibling_sockets::{
    broker::{Entry, Page},
    node::replay::{Gap, Replay},
    protocol::Position,
};

pub const PAGE: usize = 2;

/// What the checker may do, at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub writes: usize,
    pub fail_overs: u8,
    pub naps: u8,
}

/// The shipped protocol, or what is left out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Shipped,
    /// The listener reads first and subscribes then.
    ReadThenSubscribe,
    /// A live entry is told if its offset is above the last one: what it names as its predecessor is not looked at.
    ByOffset,
    /// Nobody looks at the head.
    NoLook,
    /// A head below the listener's position is ignored.
    LowHeadsIgnored,
    /// The listener remembers no position but its last.
    Forgetful,
    /// A history knows a position by its offset.
    KnownByOffset,
    /// As shipped, but a writer that had no answer tries again after a fail-over, under the same nonce.
    RetriedOverFailOver,
}

/// What was once written. Its index in [`World::written`] names it; 0 is the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Written {
    pub position: Position,
    pub parent: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reading {
    No,
    Wanted,
    /// On its way to the listener, and the newest entry when it was taken.
    Page(Page, u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub written: Vec<Written>,
    /// The history, oldest first.
    pub kept: Vec<u8>,
    /// Live deliveries under way, a bit each. One that stays under way for ever is lost.
    pub flying: u16,
    pub replay: Replay,
    pub awake: bool,
    pub subscribed: bool,
    pub reading: Reading,
    /// A look at the head on its way to the listener.
    pub look: Option<Position>,
    pub judge: Judge,
    pub fail_overs: u8,
    pub naps: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    Twice,
    SkippedInSilence,
    Miscounted,
    /// It must be read once more for what follows the gap.
    GapAlone,
    /// An uncounted gap, though the history is the one that the listener knew.
    NeedlessGap,
}

/// Hears what is told and knows what was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Judge {
    /// The last entry that was told, or that a gap covers.
    pub last: u8,
    /// What was told since the last gap that went further back than the listener remembers, as far as it is not lost:
    /// a late delivery of what is lost may be told again, where it fits.
    pub told: u16,
    /// Where the listener stood since it woke, or since that gap: all that it could remember.
    pub stood: u16,
    pub wrong: Option<Wrong>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Append,
    /// The append of a lost entry is tried again.
    Retry(u8),
    Trim,
    /// The history goes back to when this entry was its newest, and what was trimmed since is there again or is not.
    FailOver(u8, bool),
    Empty,
    /// A delivery arrives; if true, it will once more.
    Deliver(u8, bool),
    /// From the cursor, or from now on.
    Wake(bool),
    Subscribe,
    Read,
    /// The page arrives; the listener hears so many of its entries and falls asleep, or all and stays.
    Take(usize, bool),
    Look,
    HearLook,
    Sleep,
}

impl World {
    pub fn ancestors(&self, of: u8) -> impl Iterator<Item = u8> {
        std::iter::successors(Some(of), |at| (*at != 0).then(|| self.written[*at as usize].parent))
    }

    pub fn head(&self) -> u8 {
        self.kept.last().copied().unwrap_or(0)
    }

    pub fn position(&self, of: u8) -> Position {
        self.written[of as usize].position
    }

    pub fn previous(&self, of: u8) -> Position {
        self.position(self.written[of as usize].parent)
    }

    pub fn append(&mut self, nonce: u64) {
        let parent = self.head();
        let entry = Written { position: Position { offset: self.position(parent).offset + 1, nonce }, parent };
        let index = self.written.iter().position(|w| *w == entry).unwrap_or(self.written.len()) as u8;
        if index as usize == self.written.len() {
            self.written.push(entry);
        }
        self.kept.push(index);
        self.flying |= 1 << index;
    }

    /// What a back end answers: one atomic look.
    pub fn page(&self, after: Position, protocol: Protocol) -> Page {
        let entry = |of: &u8| Entry {
            position: self.position(*of),
            previous: self.previous(*of),
            payload: Bytes::copy_from_slice(&[*of]),
        };
        let same = |at: Position| at == after || (protocol == Protocol::KnownByOffset && at.offset == after.offset);
        let from_start = self.kept.first().is_none_or(|oldest| self.previous(*oldest) == Position::START);
        Page {
            entries: self.kept.iter().map(entry).filter(|e| e.position.offset > after.offset).take(PAGE).collect(),
            known: self.kept.iter().any(|of| same(self.position(*of))) || (after == Position::START && from_start),
            oldest: self.kept.first().map(|of| (self.position(*of), self.previous(*of))),
            head: self.position(self.head()),
        }
    }

    /// The gap that the page under way will show, if it arrives now.
    pub fn gap_under_way(&self) -> Option<Gap> {
        let Reading::Page(page, _) = &self.reading else { return None };
        let mut replay = self.replay.clone();
        replay.page(page.clone(), PAGE).gap
    }

    pub fn tell(&mut self, entry: u8) {
        if self.judge.told & 1 << entry != 0 {
            self.judge.wrong = Some(Wrong::Twice);
        } else if self.written[entry as usize].parent != self.judge.last {
            self.judge.wrong = Some(Wrong::SkippedInSilence);
        }
        self.judge.told |= 1 << entry;
        self.judge.stood |= 1 << entry;
        self.judge.last = entry;
    }

    /// A gap is told from a page of which `newest` was the head, and which began behind `oldest`; if true, without
    /// anything that follows it although there is something.
    pub fn tell_gap(&mut self, gap: Gap, newest: u8, oldest: Position, alone: bool) {
        let judge = &self.judge;
        let to = self.written.iter().rposition(|w| w.position == gap.at).expect("a gap ends at an entry") as u8;
        let (right, told, stood) = match gap.lost {
            Some(lost) => {
                let between = match self.ancestors(to).position(|at| at == judge.last) {
                    Some(between) => between as u64..=between as u64,
                    // The history parted from the listener's: as many at least.
                    None => 0..=self.ancestors(to).filter(|at| *at != 0 && judge.told & 1 << at == 0).count() as u64,
                };
                (between.contains(&lost), judge.told, judge.stood)
            }
            None => {
                let kept = |at: &u8| newest != 0 && self.position(*at).offset >= oldest.offset;
                let remembered = self.ancestors(newest).filter(kept).any(|at| judge.stood & 1 << at != 0);
                let both = self.ancestors(newest).fold(0, |both, at| both | 1 << at);
                let (told, stood) = if remembered { (judge.told & both, judge.stood & both) } else { (0, 0) };
                (newest == 0 || self.ancestors(newest).all(|at| at != judge.last), told, stood)
            }
        };
        let wrong = if gap.lost.is_some() { Wrong::Miscounted } else { Wrong::NeedlessGap };
        let wrong = if right { alone.then_some(Wrong::GapAlone) } else { Some(wrong) };
        self.judge = Judge { last: to, told, stood: stood | 1 << to, wrong: judge.wrong.or(wrong) };
    }

    /// The listener keeps the position of what it heard last.
    pub fn sleep(&mut self) {
        self.naps += 1;
        self.judge.stood = 1 << self.judge.last;
        let replay = Replay::new(self.position(self.judge.last));
        *self = Self { replay, awake: false, subscribed: false, reading: Reading::No, look: None, ..self.clone() };
    }
}
