//! Where a pipe stood in what its room keeps: how many frames it had been given, and which of the room's they were.
//!
//! A member is given all frames of a room with a history, in the room's one order, but those of its own. So its count
//! and the room's total go up together, and one *anchor*, taken when its socket opened, is enough to tell for any later
//! count which frame that was, on any node, although nothing is written for a receiver while frames flow. What is not
//! so (frames pushed into the pipe, or dropped on their way to it) is followed by another anchor.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::protocol::RoomName;

/// How many anchors are remembered of a socket; a count before the oldest can't be told exactly.
const MOST: usize = 8;
/// How many sockets before the present one are remembered: a peer may not know of one that was opened for it and broke
/// before it heard of that.
const SOCKETS: usize = 3;

/// One place of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Of which of the pair's client sockets.
    pub epoch: u64,
    /// How many frames it had been given.
    pub count: u64,
    /// How many frames the room had kept by then.
    pub total: u64,
    /// How many of them were the pair's own, which it is not given; counted from some place on.
    pub own: u64,
    /// Whether count and total go up together from here on.
    pub sure: bool,
}

/// Where the last of a pair's client sockets that was closed in good order had come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Which.
    pub epoch: u64,
    /// How many frames were written to it.
    pub count: u64,
    /// Whether its peer said that it had them all.
    pub clean: bool,
}

/// What is known of the places of a pair's pipe in the room that it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The room.
    pub room: RoomName,
    /// Which of the room's histories: one that begins anew, because the broker lost it, has another era. 0 when it had
    /// not begun.
    pub era: u32,
    /// Of the present client socket and the last few, oldest first.
    pub anchors: Vec<Anchor>,
    /// Where the last one stopped.
    pub stop: Option<Stop>,
}

/// How a room's history stands, for one pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How many frames it has had in all.
    pub total: u64,
    /// Which history that is.
    pub era: u32,
    /// How many of them were the pair's own; `None` if it has sent none for long.
    pub own: Option<u64>,
}

/// What a socket is to be given first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// The last so many frames that are not its own; `None` when nothing can be told.
    pub frames: Option<u64>,
    /// Frames that it was given and has not received, and that are not kept: pushed into the pipe.
    pub pushed: u64,
    /// Whether it goes on behind exactly the frame that its peer had last.
    pub exact: bool,
}

/// How a pipe goes on where the one before it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumption {
    /// Frames that it is given which came before it.
    pub replayed: u64,
    /// Frames that it is not given any more; `None` where that can't be told.
    pub lost: Option<u64>,
    /// Whether it goes on behind exactly the frame that its peer had last.
    pub exact: bool,
}

impl Resumption {
    /// As siblings are told.
    #[must_use]
    pub fn told(self, epoch: u64) -> Value {
        let Self { replayed, lost, exact } = self;
        json!({"epoch": epoch, "replayed": replayed, "lost": lost, "exact": exact})
    }
}

impl Trace {
    /// The trace of a socket that begins here. Of those before it, the last few are remembered.
    #[must_use]
    pub fn begun(before: Option<Self>, room: &RoomName, era: u32, base: Anchor) -> Self {
        let kept = before.filter(|before| before.room == *room && (before.era == era || before.era == 0));
        let (mut anchors, stop) = kept.map_or((Vec::new(), None), |before| (before.anchors, before.stop));
        let mut sockets: Vec<_> = anchors.iter().map(|anchor| anchor.epoch).collect();
        sockets.dedup();
        let oldest = sockets.len().checked_sub(SOCKETS).map_or(0, |at| sockets[at]);
        anchors.retain(|anchor| anchor.epoch >= oldest);
        anchors.push(base);
        Self { room: room.clone(), era, anchors, stop }
    }

    /// The same trace, of a pipe that had been given so many frames when it began.
    #[must_use]
    pub fn from_count(mut self, count: u64) -> Self {
        if let Some(base) = self.anchors.last_mut() {
            base.count = count;
        }
        self
    }

    /// Notes another place. One that is not sure needs no second one.
    pub fn add(&mut self, anchor: Anchor) {
        let unsure = |anchor: &Anchor| !anchor.sure;
        if !anchor.sure && self.anchors.last().is_some_and(unsure) {
            return;
        }
        self.anchors.push(anchor);
        let own = self.anchors.iter().filter(|other| other.epoch == anchor.epoch).count();
        if own > MOST
            && let Some(oldest) = self.anchors.iter().position(|other| other.epoch == anchor.epoch)
        {
            self.anchors.remove(oldest);
        }
    }

    /// Notes another place, in what may be another history by now.
    pub fn go_on(&mut self, era: u32, anchor: Anchor) {
        if self.era != era && self.era != 0 {
            self.anchors.clear();
        }
        self.era = era;
        self.add(anchor);
    }

    /// The own frames that a pair had sent when it was last noted.
    #[must_use]
    pub fn own(&self) -> u64 {
        self.anchors.last().map_or(0, |anchor| anchor.own)
    }

    /// What the pair's next socket is to be given first, when `received` frames are known to have reached its peer on
    /// the last one (or the one that is named), or where it stopped as far as that is known here.
    #[must_use]
    pub fn backlog(&self, now: Standing, received: Option<u64>, epoch: Option<u64>) -> Backlog {
        let unknown = Backlog { frames: None, pushed: 0, exact: false };
        if self.era != now.era && self.era != 0 {
            return unknown;
        }
        let last = epoch.or_else(|| self.anchors.last().map(|anchor| anchor.epoch));
        let of_it: Vec<_> = self.anchors.iter().filter(|anchor| Some(anchor.epoch) == last).collect();
        let Some(newest) = of_it.last() else { return unknown };
        let stop = self.stop.filter(|stop| Some(stop.epoch) == last);
        let (count, certain) = match (received, stop) {
            (Some(received), Some(stop)) => (received.min(stop.count), received <= stop.count),
            (Some(received), None) => (received, true),
            (None, Some(stop)) => (stop.count, stop.clean),
            // Its node died: nobody knows what was given to it since.
            (None, None) => (newest.count, false),
        };
        // The place is told by the last anchor before it.
        let at = of_it.iter().rposition(|anchor| anchor.count <= count);
        let from = of_it[at.unwrap_or(0)];
        let own = now.own.unwrap_or(newest.own);
        let since =
            |anchor: &Anchor| now.total.saturating_sub(anchor.total).saturating_sub(own.saturating_sub(anchor.own));
        let more = count.saturating_sub(from.count);
        // What it had been given before it came to the room is not the room's.
        let before = from.count.saturating_sub(count);
        // Frames that were pushed behind that place, and before a later anchor, can't be given again.
        let pushed = of_it[at.unwrap_or(0)..].windows(2).map(|pair| {
            let [one, next] = pair else { return 0 };
            let kept = since(one).saturating_sub(since(next));
            (next.count.saturating_sub(one.count.max(count)))
                .saturating_sub(kept.saturating_sub(count.saturating_sub(one.count)))
        });
        Backlog {
            frames: Some(since(from).saturating_sub(more)),
            pushed: before + pushed.sum::<u64>(),
            exact: certain && at.is_some() && from.sure && more <= since(from),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn room() -> RoomName {
        "r".parse().unwrap()
    }

    /// What becomes of a pipe.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Given(u64),
        Own(u64),
        Pushed,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (1u64..40).prop_map(Step::Given),
            2 => (1u64..9).prop_map(Step::Own),
            1 => Just(Step::Pushed),
        ];
        prop::collection::vec(step, 0..24)
    }

    proptest! {
        /// Whatever count the peer names, what it is given next is what it has not had, with few anchors.
        #[test]
        fn any_count_is_found_again(steps in steps(), base in 0u64..1_000, own in 0u64..50, at in 0usize..=100) {
            // What the room kept since the base (true: not the pair's own), and what the pipe was given: a kept frame's
            // number, or none for a pushed one.
            let (mut kept, mut given, mut owned) = (Vec::new(), Vec::new(), own);
            let anchor = Anchor { epoch: 1, count: 0, total: base, own, sure: true };
            let mut trace = Trace::begun(None, &room(), 7, anchor);
            for step in steps {
                match step {
                    Step::Given(n) => (0..n).for_each(|_| {
                        given.push(Some(kept.len()));
                        kept.push(true);
                    }),
                    Step::Own(n) => {
                        owned += n;
                        kept.extend((0..n).map(|_| false));
                    }
                    Step::Pushed => {
                        given.push(None);
                        let (count, total) = (given.len() as u64, base + kept.len() as u64);
                        trace.add(Anchor { epoch: 1, count, total, own: owned, sure: true });
                    }
                }
            }
            let received = at * given.len() / 100;
            let now = Standing { total: base + kept.len() as u64, era: 7, own: Some(owned) };
            let told = trace.backlog(now, Some(received as u64), None);
            let left = &given[received..];
            let oldest = trace.anchors[0].count as usize;
            prop_assert_eq!(told.exact, received >= oldest);
            if told.exact {
                prop_assert_eq!(told.frames, Some(left.iter().flatten().count() as u64));
                prop_assert_eq!(told.pushed, left.iter().filter(|frame| frame.is_none()).count() as u64);
            }
            prop_assert!(trace.anchors.len() <= MOST);
        }
    }

    #[test]
    fn what_is_not_known_is_not_called_exact() {
        let anchor = |epoch, count, total, sure| Anchor { epoch, count, total, own: 0, sure };
        let mut trace = Trace::begun(None, &room(), 7, anchor(1, 0, 100, true));
        let now = Standing { total: 150, era: 7, own: None };
        let told = |trace: &Trace, received| trace.backlog(now, received, None);
        let exactly = |frames| Backlog { frames: Some(frames), pushed: 0, exact: true };
        assert_eq!(told(&trace, Some(20)), exactly(30));
        assert_eq!(told(&trace, None), Backlog { exact: false, ..exactly(50) }, "its node died");
        assert!(!told(&trace, Some(51)).exact, "more than there were");
        trace.stop = Some(Stop { epoch: 1, count: 40, clean: false });
        assert_eq!(told(&trace, None), Backlog { exact: false, ..exactly(10) });
        trace.stop = Some(Stop { epoch: 1, count: 40, clean: true });
        assert_eq!(told(&trace, None), exactly(10));
        assert!(!told(&trace, Some(41)).exact, "more than were written");
        trace.add(anchor(1, 30, 130, false));
        assert_eq!((told(&trace, Some(29)), told(&trace, Some(35)).exact), (exactly(21), false));
        let lost = Standing { era: 8, ..now };
        assert_eq!(trace.backlog(lost, Some(1), None).frames, None, "another history");

        let next = Trace::begun(Some(trace), &room(), 7, anchor(2, 0, 140, true));
        assert_eq!(told(&next, Some(4)), exactly(6));
        assert_eq!(next.backlog(now, Some(10), Some(1)), exactly(40), "the socket before was the last that it knew");
        let mut later = next;
        for epoch in 3..=5 {
            later = Trace::begun(Some(later), &room(), 7, anchor(epoch, 0, 145, true));
        }
        assert_eq!(later.backlog(now, Some(4), Some(2)), exactly(6), "three before the present one");
        assert_eq!(later.backlog(now, Some(1), Some(1)).frames, None);
    }
}
