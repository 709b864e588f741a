//! What an outbox owes: its bound, its policies, its positions, and the places of marks.

use proptest::prelude::*;

use super::*;
use crate::{
    hub::Dropped,
    protocol::{FrameKind, PairId, RunBuilder},
};

/// A mark that stands behind so many of the frames that were pushed.
fn mark(behind: u64) -> Arc<Mark> {
    Arc::new(Mark { from: PairId::fresh(), data: behind.into(), cause: None })
}

/// What was reached: the place of each mark, and behind which frames it was pushed.
fn reached(outbox: &Outbox) -> Vec<(u64, u64)> {
    let (marks, more) = outbox.take_marks(usize::MAX);
    assert!(!more);
    marks.iter().map(|reached| (reached.at, reached.mark.data.as_u64().expect("a count"))).collect()
}

fn watching(limit: usize, slow: Slow) -> Outbox {
    let outbox = Outbox::new(limit, slow);
    outbox.watch_marks(true);
    outbox
}

/// A run of `n` frames of 10 bytes on the wire, each carrying its number.
fn run(from: u64, n: u64) -> Run {
    let mut builder = RunBuilder::default();
    for number in from..from + n {
        builder.push(FrameKind::Binary, &number.to_be_bytes());
    }
    builder.finish()
}

fn drain(outbox: &Outbox, bytes: usize) -> Vec<u64> {
    let mut parts = VecDeque::new();
    outbox.take(bytes, &mut parts);
    let mut numbers = Vec::new();
    for part in parts {
        outbox.wrote(part.len());
        numbers.extend(part.chunks(10).map(|f| u64::from_be_bytes(f[2..].try_into().expect("eight bytes"))));
    }
    numbers
}

#[test]
fn no_more_is_taken_at_once_than_is_asked_for() {
    let outbox = watching(9_999, Slow::Close);
    for (from, n) in [(0, 3), (3, 3), (6, 9), (15, 1)] {
        outbox.push(&run(from, n));
        outbox.push_mark(&mark(from + n), 1);
    }
    assert_eq!(drain(&outbox, 65), (0..6).collect::<Vec<_>>());
    assert_eq!(reached(&outbox), [(3, 3), (6, 6)]);
    assert_eq!(drain(&outbox, 65), (6..15).collect::<Vec<_>>(), "one that is longer goes by itself");
    assert_eq!(drain(&outbox, 65), [15]);
    assert_eq!(reached(&outbox), [(15, 15), (16, 16)]);
}

#[test]
fn the_newest_or_the_oldest_go() {
    let newest = Outbox::new(1_000, Slow::DropNewest);
    newest.push(&run(0, 90));
    newest.push(&run(90, 20));
    assert_eq!(newest.level().dropped.frames, 10);
    assert_eq!(drain(&newest, 9_999), (0..100).collect::<Vec<_>>());

    let oldest = Outbox::new(1_000, Slow::DropOldest);
    oldest.push(&run(0, 5));
    assert_eq!(oldest.position(), 5);
    oldest.push(&run(5, 90));
    oldest.push(&run(95, 25));
    assert_eq!(oldest.level().dropped, Dropped { frames: 20, bytes: 160, marks: 0 });
    assert_eq!(drain(&oldest, 9_999), (0..5).chain(25..120).collect::<Vec<_>>(), "what was promised stays");
    oldest.push(&run(0, 200));
    assert_eq!(drain(&oldest, 9_999), (100..200).collect::<Vec<_>>());
}

#[test]
fn one_frame_may_be_larger_than_the_bound() {
    let big = Run::of(FrameKind::Binary, &[0; 5_000]);
    for slow in [Slow::Close, Slow::DropNewest, Slow::DropOldest] {
        let outbox = Outbox::new(1_000, slow);
        outbox.push(&big);
        assert_eq!((outbox.level().queued_frames, outbox.level().overflowed), (1, false), "{slow:?}");
        outbox.push(&big);
        assert_eq!((outbox.level().queued_frames, outbox.level().overflowed), (1, slow == Slow::Close));
    }
}

#[test]
fn a_full_queue_asks_to_be_closed() {
    let outbox = Outbox::new(1_000, Slow::Close);
    outbox.push(&run(0, 50));
    assert!(!outbox.level().lagging);
    outbox.push(&run(50, 50));
    assert!(outbox.level().lagging && !outbox.level().overflowed);
    outbox.push(&run(100, 1));
    assert!(outbox.level().overflowed);
    assert_eq!(drain(&outbox, 9_999).len(), 100);
    assert!(!outbox.level().lagging);
}

#[test]
fn a_pause_is_exact() {
    let outbox = Outbox::new(10_000, Slow::Close);
    outbox.push(&run(0, 3));
    outbox.push(&run(3, 3));
    assert_eq!(drain(&outbox, 1), [0, 1, 2]);
    assert_eq!(outbox.pause(PausePolicy::Buffer), 3);
    outbox.push(&run(6, 4));
    assert!(drain(&outbox, 999).is_empty());
    assert_eq!(outbox.resume(), Resumed { position: 3, waited: 7, dropped: 0 });
    assert_eq!(outbox.pause(PausePolicy::Drop), 10);
    outbox.push(&run(10, 5));
    assert_eq!(drain(&outbox, 999), (3..10).collect::<Vec<_>>());
    assert_eq!(outbox.resume(), Resumed { position: 10, waited: 0, dropped: 5 });
    assert_eq!((outbox.level().dropped.frames, outbox.level().dropped_in_pauses.frames), (0, 5));
    assert_eq!(outbox.push_through(&run(10, 1)), 11);
}

#[test]
fn a_mark_is_told_when_its_turn_has_come() {
    let outbox = Outbox::new(1_000, Slow::Close);
    outbox.push_mark(&mark(0), 50);
    assert!(!outbox.take_news() && reached(&outbox).is_empty(), "nobody wants to know");
    outbox.watch_marks(true);
    outbox.push_mark(&mark(0), 50);
    assert!(outbox.take_news(), "nothing is before it");
    assert_eq!(outbox.level().queued_bytes, 50, "it counts until it is told");
    assert_eq!(reached(&outbox), [(0, 0)]);
    assert_eq!(outbox.level().queued_bytes, 0);

    outbox.push(&run(0, 3));
    outbox.push_mark(&mark(3), 50);
    outbox.push_mark(&mark(3), 50);
    assert!(!outbox.take_news() && outbox.waiting_marks() == 2);
    outbox.push(&run(3, 3));
    assert_eq!(drain(&outbox, 1), [0, 1, 2]);
    assert!(outbox.take_news(), "no frame is before them, and one behind");
    assert_eq!(reached(&outbox), [(3, 3), (3, 3)]);

    // In a pause they wait; under a policy that drops what comes, frames behind them go.
    outbox.pause(PausePolicy::Buffer);
    outbox.push_mark(&mark(6), 50);
    assert_eq!(outbox.pause(PausePolicy::Drop), 6);
    outbox.push(&run(6, 9));
    outbox.push_mark(&mark(15), 50);
    assert_eq!(drain(&outbox, 999), [3, 4, 5]);
    assert_eq!(reached(&outbox), [(6, 6), (6, 15)]);
    outbox.pause(PausePolicy::Hold);
    outbox.push_mark(&mark(15), 50);
    assert!(reached(&outbox).is_empty());
    outbox.resume();
    assert_eq!(reached(&outbox), [(6, 15)], "the pause was all that it waited for");
    assert_eq!(outbox.level().mark_bytes, 0);
}

#[test]
fn marks_follow_the_policy_of_a_full_queue() {
    let close = watching(1_000, Slow::Close);
    close.push(&run(0, 95));
    close.push_mark(&mark(95), 51);
    assert!(close.level().overflowed);

    let newest = watching(1_000, Slow::DropNewest);
    newest.push(&run(0, 95));
    newest.push_mark(&mark(95), 51);
    newest.push_mark(&mark(95), 50);
    assert_eq!((newest.level().dropped.marks, newest.level().overflowed), (1, false));
    assert_eq!(drain(&newest, 9_999).len(), 95);
    assert_eq!(reached(&newest), [(95, 95)]);

    let oldest = watching(1_000, Slow::DropOldest);
    oldest.push(&run(0, 50));
    oldest.push_mark(&mark(50), 50);
    oldest.push(&run(50, 45));
    oldest.push_mark(&mark(95), 50);
    // Five frames made room for the mark; these make room for those that come, and the mark among them stays.
    oldest.push(&run(95, 60));
    assert_eq!(oldest.level().dropped, Dropped { frames: 65, bytes: 520, marks: 0 });
    assert_eq!(reached(&oldest), [(0, 50)]);
    assert_eq!(drain(&oldest, 9_999), (65..155).collect::<Vec<_>>());
    assert_eq!(reached(&oldest), [(30, 95)]);

    // They may not keep all frames out.
    oldest.pause(PausePolicy::Buffer);
    for _ in 0..40 {
        oldest.push_mark(&mark(155), 50);
    }
    assert_eq!((oldest.level().mark_bytes, oldest.level().dropped.marks), (1_000, 20), "while nobody else comes");
    oldest.push(&run(155, 90));
    let level = oldest.level();
    assert_eq!((level.queued_frames, level.mark_bytes, level.dropped.marks), (75, 250, 35));
    oldest.resume();
    assert!(oldest.take_marks(1).1, "these can wait to be told");
    oldest.set(100, Slow::DropOldest);
    assert_eq!(oldest.take_marks(1).0.len(), 4, "now they hold too much");
}

/// What happens to an outbox.
#[derive(Debug, Clone)]
enum Happens {
    Frames(u64),
    Mark(usize),
    Take(usize),
    Tell(usize),
    Promise,
    Pause(PausePolicy),
    Resume,
    Limit(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (1..40u64).prop_map(Happens::Frames),
        4 => (1..90usize).prop_map(Happens::Mark),
        3 => (1..300usize).prop_map(Happens::Take),
        2 => (0..4usize).prop_map(Happens::Tell),
        1 => Just(Happens::Promise),
        1 => prop_oneof![Just(PausePolicy::Buffer), Just(PausePolicy::Drop), Just(PausePolicy::Hold)].prop_map(Happens::Pause),
        2 => Just(Happens::Resume),
        1 => (100..700usize).prop_map(Happens::Limit),
    ]
}

proptest! {
    /// Frames carry their numbers, and a mark says behind which it was pushed: whatever happens, its place divides
    /// those that came before it from those that came behind it.
    #[test]
    fn a_place_is_the_number_of_frames_before_it(
        steps in prop::collection::vec(happens(), 1..60),
        slow in prop_oneof![Just(Slow::DropOldest), Just(Slow::DropNewest), Just(Slow::Close)],
    ) {
        let outbox = watching(500, slow);
        let (mut pushed, mut marks, mut out, mut told) = (0, 0, Vec::new(), Vec::new());
        for step in steps {
            match step {
                Happens::Frames(n) => {
                    outbox.push(&run(pushed, n));
                    pushed += n;
                }
                Happens::Mark(weight) => {
                    outbox.push_mark(&mark(pushed), weight);
                    marks += 1;
                }
                Happens::Take(bytes) => out.extend(drain(&outbox, bytes)),
                Happens::Tell(most) => told.extend(outbox.take_marks(most).0),
                Happens::Promise => { outbox.position(); }
                Happens::Pause(policy) => { outbox.pause(policy); }
                Happens::Resume => { outbox.resume(); }
                Happens::Limit(limit) => outbox.set(limit, slow),
            }
            let level = outbox.level();
            let frames = level.taken_frames + level.queued_frames + level.dropped.frames;
            prop_assert_eq!(frames + level.dropped_in_pauses.frames, pushed);
            prop_assert_eq!(level.queued_frames * 10 + level.mark_bytes as u64, level.queued_bytes as u64);
        }
        outbox.resume();
        out.extend(drain(&outbox, 99_999));
        told.extend(outbox.take_marks(usize::MAX).0);
        prop_assert_eq!(told.len() as u64 + outbox.level().dropped.marks, marks);
        prop_assert_eq!((outbox.waiting_marks(), outbox.level().queued_bytes), (0, 0));
        for reached in told {
            let (at, behind) = (reached.at as usize, reached.mark.data.as_u64().expect("a count"));
            prop_assert!(out[..at].iter().all(|number| *number < behind), "{:?} {:?}", reached, out);
            prop_assert!(out[at..].iter().all(|number| *number >= behind), "{:?} {:?}", reached, out);
        }
    }

    #[test]
    fn the_books_balance(steps: Vec<(u8, u8)>, slow in prop_oneof![Just(Slow::DropOldest), Just(Slow::DropNewest)]) {
        let outbox = Outbox::new(500, slow);
        let (mut pushed, mut out) = (0, Vec::new());
        for (what, n) in steps {
            match what % 4 {
                0 | 1 => {
                    outbox.push(&run(pushed, u64::from(n % 40) + 1));
                    pushed += u64::from(n % 40) + 1;
                }
                2 => out.extend(drain(&outbox, usize::from(n))),
                _ => { outbox.position(); }
            }
            let level = outbox.level();
            prop_assert!(level.queued_bytes <= 500);
            prop_assert_eq!(level.taken_frames + level.queued_frames + level.dropped.frames, pushed);
            prop_assert_eq!(level.queued_frames * 10, level.queued_bytes as u64);
        }
        out.extend(drain(&outbox, 99_999));
        prop_assert!(out.is_sorted());
        prop_assert_eq!(out.len() as u64, outbox.level().taken_frames);
    }
}

/// A kernel that takes nothing for now.
struct Wall;

impl Wire for Wall {
    fn flush(&self, _: &Outbox) -> Result<Flushed, Disconnected> {
        Ok(Flushed::Blocked)
    }
}

/// Takes so many bytes of each flush, and all when there is no such number.
struct Scale(Mutex<Vec<u8>>, Option<usize>);

impl Wire for Scale {
    fn flush(&self, outbox: &Outbox) -> Result<Flushed, Disconnected> {
        let mut parts = VecDeque::new();
        outbox.take(self.1.unwrap_or(usize::MAX), &mut parts);
        let bytes: Vec<u8> = parts.into_iter().flatten().collect();
        outbox.wrote(bytes.len());
        self.0.lock().extend(bytes);
        Ok(if outbox.level().queued_frames == 0 { Flushed::All } else { Flushed::Turn })
    }
}

fn weak(wire: &Arc<Scale>) -> Weak<dyn Wire> {
    let wire: Arc<dyn Wire> = Arc::clone(wire) as _;
    Arc::downgrade(&wire)
}

#[test]
fn a_postman_is_sent_once_and_wakes_the_actor_only_for_news() {
    use futures_util::FutureExt as _;
    let outbox = watching(1_000, Slow::Close);
    assert!(!outbox.push(&run(0, 1)), "nobody carries it yet");
    let wire = Arc::new(Scale(Mutex::default(), None));
    outbox.attach(weak(&wire));
    assert!(outbox.changed().now_or_never().is_some(), "what was there before is the actor's");
    drain(&outbox, 99);

    assert_eq!([outbox.push(&run(1, 1)), outbox.push(&run(2, 2))], [true, false], "one way for both");
    assert!(!outbox.carry());
    assert_eq!((wire.0.lock().len(), outbox.level().taken_frames), (30, 4));
    assert!(outbox.changed().now_or_never().is_none() && !outbox.take_news(), "the actor sleeps on");

    assert!(outbox.push(&run(4, 1)));
    outbox.push_mark(&mark(5), 1);
    assert!(!outbox.carry());
    assert!(outbox.changed().now_or_never().is_some() && outbox.take_news(), "a mark was reached");
    assert_eq!(reached(&outbox), [(5, 5)]);

    let wall: Arc<dyn Wire> = Arc::new(Wall);
    outbox.attach(Arc::downgrade(&wall));
    drain(&outbox, 99);
    assert!(outbox.changed().now_or_never().is_some() && outbox.push(&run(5, 1)));
    assert!(!outbox.carry() && outbox.changed().now_or_never().is_some(), "the actor waits for the kernel");
    drain(&outbox, 99);

    drop(wall);
    assert!(outbox.push(&run(5, 1)));
    assert!(!outbox.carry() && outbox.changed().now_or_never().is_some(), "the wire is gone: the actor is to see it");
    drain(&outbox, 99);

    outbox.detach();
    assert!(!outbox.push(&run(5, 1)) && outbox.changed().now_or_never().is_some(), "it is the actor's again");
    assert!(!outbox.carry());
    assert_eq!(wire.0.lock().len(), 40);
}

#[tokio::test]
async fn postmen_come_until_all_is_carried() {
    let postmen = super::super::Postmen::new(2);
    let outboxes: Vec<_> = (0..100).map(|_| Arc::new(Outbox::new(1_000, Slow::Close))).collect();
    let wires: Vec<_> = outboxes.iter().map(|_| Arc::new(Scale(Mutex::default(), Some(15)))).collect();
    for (outbox, wire) in outboxes.iter().zip(&wires) {
        outbox.attach(weak(wire));
    }
    let counts = [1, 6, 7, 13, 100];
    let sending = async {
        for count in counts {
            let due: Vec<_> = outboxes.iter().take(count).filter(|outbox| outbox.push(&run(0, 5))).cloned().collect();
            assert_eq!(due.len(), count);
            postmen.send(due, 50 << 10);
            while outboxes.iter().any(|outbox| outbox.level().queued_bytes > 0) {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = postmen.work(0) => {}
        () = postmen.work(1) => {}
    }
    let written: Vec<_> = wires.iter().map(|wire| wire.0.lock().len() / 50).collect();
    let wanted: Vec<_> = (0..100).map(|n| counts.iter().filter(|count| n < **count).count()).collect();
    assert_eq!(written, wanted);
}

#[test]
fn marks_cost_frames_nothing() {
    assert_eq!(size_of::<Item>(), size_of::<Run>(), "a line of frames is not longer because marks may stand in it");
}

#[test]
fn frames_that_come_and_go_leave_nothing() {
    let outbox = Outbox::new(1_000, Slow::DropOldest);
    for n in 0..9 {
        assert!(outbox.fits(10));
        outbox.push(&Run::of(FrameKind::Binary, &[n; 100]));
        outbox.push(&Run::of(FrameKind::Binary, &[n; 100]));
        let mut taken = VecDeque::new();
        outbox.take(1_000, &mut taken);
        outbox.wrote(taken.iter().map(Bytes::len).sum());
        assert_eq!(
            (outbox.take_news(), outbox.take_marks(9).0.len(), outbox.position()),
            (false, 0, 2 * (u64::from(n) + 1))
        );
    }
    let mut queue = outbox.queue.lock();
    assert!(queue.seldom.there().is_none(), "nothing was dropped, marked, promised or paused");
}
