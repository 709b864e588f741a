//! What comes from the client: how much there was, and what waits while it is paused.
//!
//! A sender's position counts every data frame that the client has sent on this socket, also those that were refused or
//! dropped: it is the number that a client knows which counts what it sends.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    hub::{AtFirst, Dropped, Seldom},
    protocol::{Mark, PausePolicy, Run},
};

/// Frames from the client.
#[derive(Default)]
pub(super) struct Inflow {
    /// Frames that the client has sent since the socket opened.
    pub(super) sent: u64,
    /// Those of them that were taken.
    pub(super) frames: u64,
    /// Their payload, in bytes.
    pub(super) bytes: u64,
    /// Frames published as the client, by itself or by its siblings.
    pub(super) published: u64,
    /// Stopped, and how.
    pub(super) paused: Option<PausePolicy>,
    pub(super) stop: Seldom<Stop>,
}

/// What pauses make of it.
#[derive(Default)]
pub(super) struct Stop {
    /// How many frames come before whatever waits.
    at: u64,
    /// Waiting to be published after a pause, bounded by the queue's size.
    waiting: VecDeque<Held>,
    pub(super) waiting_bytes: usize,
    /// Dropped in pauses since the socket opened.
    pub(super) dropped: Dropped,
    /// Frames dropped in the present pause.
    pub(super) dropped_in_pause: u64,
}

impl AtFirst for Stop {
    const AT_FIRST: &'static Self =
        &Self { at: 0, waiting: VecDeque::new(), waiting_bytes: 0, dropped: Dropped::NOTHING, dropped_in_pause: 0 };
}

/// What waits for the end of a pause, and at which position it ends.
pub(super) enum Held {
    /// Frames that the client sent one behind the other.
    Run(Run, u64),
    /// A mark behind so many frames.
    Mark(Arc<Mark>, u64),
}

impl Held {
    /// How many of the client's frames come before it or are in it.
    fn upto(&self) -> u64 {
        let (Self::Run(_, upto) | Self::Mark(_, upto)) = self;
        *upto
    }

    /// How many frames are in it.
    pub(super) fn frames(&self) -> u64 {
        match self {
            Self::Run(run, _) => run.frames(),
            Self::Mark(..) => 0,
        }
    }
}

impl Inflow {
    /// Whether what comes waits.
    pub(super) fn holds(&self) -> bool {
        matches!(self.paused, Some(PausePolicy::Buffer | PausePolicy::Hold))
    }

    /// How many of the client's frames have gone, in whichever way: the next has not.
    pub(super) fn position(&self) -> u64 {
        if self.holds() { self.stop.at } else { self.sent }
    }

    /// Stops; returns what waited so far and is to go now: under a policy that drops what comes, it does not wait any
    /// more.
    pub(super) fn pause(&mut self, policy: PausePolicy) -> VecDeque<Held> {
        if !self.holds() {
            self.stop.at = self.sent;
        }
        self.paused = Some(policy);
        if self.holds() { VecDeque::new() } else { self.release() }
    }

    /// Goes on; returns what waited.
    pub(super) fn resume(&mut self) -> VecDeque<Held> {
        self.paused = None;
        self.release()
    }

    /// The socket ends: what still waits.
    pub(super) fn release(&mut self) -> VecDeque<Held> {
        let Some(stop) = self.stop.there() else { return VecDeque::new() };
        stop.waiting_bytes = 0;
        std::mem::take(&mut stop.waiting)
    }

    /// A run waits that ends at the position `upto`.
    pub(super) fn hold(&mut self, run: Run, upto: u64) {
        self.stop.waiting_bytes += run.len();
        self.stop.waiting.push_back(Held::Run(run, upto));
    }

    /// A mark waits behind exactly `place` frames, and behind other marks there.
    pub(super) fn hold_mark(&mut self, mark: Arc<Mark>, place: u64) {
        let stop = &mut *self.stop;
        stop.waiting_bytes += mark.weight();
        let mut at = stop.waiting.partition_point(|held| held.upto() <= place);
        if let Some(Held::Run(run, upto)) = stop.waiting.get_mut(at) {
            // Frames that were refused leave holes between runs, and none within.
            let front = run.split_frames(place.saturating_sub(*upto - run.frames()));
            if !front.is_empty() {
                stop.waiting.insert(at, Held::Run(front, place));
                at += 1;
            }
        }
        stop.waiting.insert(at, Held::Mark(mark, place));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::protocol::{FrameKind, PairId, RunBuilder};

    /// Frames `from + 1` to `upto`, each carrying its number.
    fn run(from: u64, upto: u64) -> Run {
        let mut builder = RunBuilder::default();
        for number in from + 1..=upto {
            builder.push(FrameKind::Binary, &number.to_be_bytes());
        }
        builder.finish()
    }

    fn numbers(run: &Run) -> Vec<u64> {
        run.wire().chunks(10).map(|frame| u64::from_be_bytes(frame[2..].try_into().unwrap())).collect()
    }

    fn mark(data: serde_json::Value) -> Arc<Mark> {
        Arc::new(Mark { from: PairId::fresh(), data, cause: None })
    }

    #[test]
    fn a_pause_that_drops_lets_what_waited_go() {
        let mut inflow = Inflow { sent: 10, ..Inflow::default() };
        assert!(inflow.pause(PausePolicy::Buffer).is_empty());
        inflow.hold(run(10, 15), 15);
        inflow.sent = 15;
        assert_eq!(inflow.position(), 10);
        assert!(inflow.pause(PausePolicy::Hold).is_empty(), "it waits on");
        assert_eq!(inflow.position(), 10);
        assert_eq!(inflow.pause(PausePolicy::Drop).iter().map(Held::frames).sum::<u64>(), 5);
        assert_eq!((inflow.position(), inflow.stop.waiting_bytes), (15, 0));
        inflow.sent = 18;
        assert!(inflow.pause(PausePolicy::Buffer).is_empty());
        assert_eq!(inflow.position(), 18, "what was dropped has gone");
    }

    proptest! {
        /// Runs of random lengths with holes between them, and marks at random places put in afterwards.
        #[test]
        fn marks_are_put_exactly_where_they_belong(
            runs in prop::collection::vec((1..6u64, 0..3u64), 1..8), places in prop::collection::vec(0..60u64, 0..12),
        ) {
            let mut inflow = Inflow { sent: 7, ..Inflow::default() };
            drop(inflow.pause(PausePolicy::Buffer));
            for (frames, refused) in runs {
                let from = inflow.sent + refused;
                inflow.sent = from + frames;
                inflow.hold(run(from, inflow.sent), inflow.sent);
            }
            let sent = inflow.sent;
            for (n, place) in places.iter().enumerate() {
                inflow.hold_mark(mark(json!(n)), 7 + place % (sent - 6));
            }
            let (mut last, mut marks) = (7, Vec::new());
            for held in inflow.resume() {
                match held {
                    Held::Run(run, upto) => {
                        for number in numbers(&run) {
                            prop_assert!(number > last, "frame {} behind {}", number, last);
                            last = number;
                        }
                        prop_assert_eq!(last, upto);
                    }
                    Held::Mark(mark, place) => {
                        prop_assert!(last <= place, "frame {} before the mark behind {}", last, place);
                        // What comes next comes behind it.
                        last = place;
                        marks.push((place, mark.data.as_u64().unwrap()));
                    }
                }
            }
            prop_assert_eq!(marks.len(), places.len());
            prop_assert!(marks.is_sorted(), "{:?}: in order, and at one place as they came", marks);
        }
    }
}
