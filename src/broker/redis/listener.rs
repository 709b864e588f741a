//! The task that listens to a primary: over a connection that only listens, it puts subscriptions in force, turns what
//! comes in into deliveries, and connects again when that breaks.
//!
//! Channels are sharded ones: in Redis Cluster a message then goes to one primary and its replicas, not to everyone,
//! and on a single server they cost the same. Redis answers in order, so what is asked of it ends with a numbered PING:
//! when its answer is there and nothing was refused before, all of it is in force. When a slot moves Redis takes
//! subscriptions away; that it says so is not relied on, it is asked now and then how many are in force.

use std::{collections::VecDeque, sync::Arc};

use fred::{
    error::{Error, ErrorKind},
    types::config::Config,
};
use futures_util::future::{BoxFuture, pending};
use redis_protocol::resp3::types::BytesFrame;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, Instant, Interval, MissedTickBehavior, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    board::{Board, LaneId},
    connect::{ANSWER, CONNECT, Retry, SILENCE},
    keys::Keys,
    live::{Asked, CHANGES, Change, Failed, Shared, silent},
    outlet::Outlet,
    standing::Standing,
    wire::{Sheet, Wire, refusal, text},
};
/// How often the listener looks after what waits.
const TICK: Duration = Duration::from_millis(200);

/// How often an idle connection must show that it is alive: half-open ones look like silence otherwise.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// How soon Redis is asked again after it has counted other subscriptions than are wanted, or after a slot has moved.
const SOON: Duration = Duration::from_millis(500);

/// How long a new primary may still take subscriptions away: it does so each time that it is told that it owns a slot,
/// which those who move slots, and the cluster's other members, may do again and again.
const UNSETTLED: Duration = Duration::from_secs(5);

/// How many frames are taken before something else gets its turn.
const PORTION: usize = 256;

/// What was asked of Redis at once.
struct Batch {
    /// Its PING's.
    number: u64,
    since: Instant,
    /// Something in it was refused.
    refused: bool,
    then: Then,
}

/// What is to be done when it is answered.
enum Then {
    /// The changes are in force.
    Changed(Vec<Change>),
    /// Somebody waits for channels to be in force.
    TakenOver(oneshot::Sender<bool>),
    /// Everything that is wanted is in force.
    Restored,
    /// Redis has told how many subscriptions it has; so many were wanted, where that is certain.
    Counted(Option<usize>),
}

pub(super) struct Listener {
    lane: LaneId,
    config: Config,
    keys: Keys,
    board: Arc<Board>,
    standing: Arc<Standing>,
    outlet: Outlet,
    wire: Option<Wire>,
    /// The next connection, while there is none.
    opening: Option<BoxFuture<'static, Result<Wire, Error>>>,
    retry: Retry,
    /// What Redis has not answered yet.
    batches: VecDeque<Batch>,
    numbers: u64,
    /// Whether everything wanted is in force. Until then nothing is delivered: it would be out of place.
    up: bool,
    /// How many subscriptions Redis has counted when it was last asked; Redis before 7.0.3 does not tell.
    counted: Option<usize>,
    /// Whether these were others than are wanted.
    differs: bool,
    /// Until when what was taken over may be taken away again.
    unsettled: Instant,
    /// Changes that wait until everything is in force.
    pending: Vec<Change>,
    /// When Redis was last spoken to.
    spoken: Instant,
}

impl Listener {
    /// Nothing must have been subscribed to over `wire` before.
    pub(super) fn new(lane: LaneId, wire: Wire, config: Config, shared: &Shared) -> Self {
        let Shared { keys, board, standing, deliveries } = shared.clone();
        Self {
            lane,
            config,
            keys,
            outlet: Outlet::new(lane, Arc::clone(&board), &deliveries),
            board,
            standing,
            wire: Some(wire),
            opening: None,
            retry: Retry::soon(),
            batches: VecDeque::new(),
            numbers: 0,
            up: true,
            counted: None,
            differs: false,
            unsettled: Instant::now(),
            pending: Vec::new(),
            spoken: Instant::now(),
        }
    }

    pub(super) async fn run(mut self, mut asked: mpsc::Receiver<Asked>, stop: CancellationToken) {
        let closed = self.outlet.closed();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::select! {
            () = stop.cancelled() => {}
            () = closed => {}
            () = async { while self.turn(&mut asked, &mut tick).await {} } => {}
        }
    }

    /// One turn; false when nobody can ask for anything any more.
    async fn turn(&mut self, asked: &mut mpsc::Receiver<Asked>, tick: &mut Interval) -> bool {
        let mut all = Vec::new();
        let restoring = self.batches.iter().any(|batch| matches!(batch.then, Then::Restored));
        tokio::select! {
            frame = next_frame(&mut self.wire) => match frame {
                Ok(frame) => self.hear(frame).await,
                Err(error) => self.part(&error).await,
            },
            opened = next_wire(&mut self.opening) => self.opened(opened).await,
            // What is asked while everything is put in force might be left out of it.
            count = asked.recv_many(&mut all, CHANGES), if !restoring => match count {
                0 => return false,
                _ => self.do_asked(all).await,
            },
            _ = tick.tick() => self.look_after().await,
            () = self.outlet.has_room(), if self.outlet.is_lossy() && self.up => {
                self.standing.back(self.lane).await;
                self.outlet.go_on();
            }
        }
        true
    }

    async fn opened(&mut self, opened: Result<Wire, Error>) {
        self.opening = None;
        match opened {
            Ok(wire) => {
                self.wire = Some(wire);
                self.restore().await;
            }
            Err(error) => {
                tracing::debug!(%error, lane = self.lane, "could not connect the subscriber yet");
                // Maybe there is another primary.
                self.board.doubts.notify_one();
                self.retry.failed();
                self.open();
            }
        }
    }

    fn open(&mut self) {
        let (config, at) = (self.config.clone(), self.retry.at());
        self.opening = Some(Box::pin(async move {
            sleep_until(at).await;
            Wire::open(&config, CONNECT).await
        }));
    }

    /// The connection is of no use any more.
    async fn part(&mut self, error: &(dyn std::fmt::Display + Sync)) {
        self.wire = None;
        if !self.up {
            // It broke before it was of any use: so may the next one.
            self.retry.failed();
        }
        self.open();
        for batch in std::mem::take(&mut self.batches) {
            match batch.then {
                Then::Changed(changes) => self.pending.extend(changes),
                // Nobody waits for it any more when the lookout has ended.
                Then::TakenOver(done) => {
                    let _ = done.send(false);
                }
                Then::Restored | Then::Counted(_) => {}
            }
        }
        self.lose(error).await;
    }

    async fn lose(&mut self, error: &(dyn std::fmt::Display + Sync)) {
        if std::mem::replace(&mut self.up, false) {
            tracing::warn!(%error, "lost the subscriber connection");
            self.standing.down(self.lane).await;
        }
    }

    /// Asks Redis for something.
    async fn ask(&mut self, mut sheet: Sheet, then: Then) {
        self.numbers += 1;
        sheet.say(&["PING", &self.numbers.to_string()]);
        self.spoken = Instant::now();
        self.batches.push_back(Batch { number: self.numbers, since: self.spoken, refused: false, then });
        let Some(wire) = &mut self.wire else { return };
        if let Err(error) = wire.write(sheet).await {
            self.part(&error).await;
        }
    }

    /// Puts everything wanted in force.
    async fn restore(&mut self) {
        let mut sheet = Sheet::default();
        for channel in self.board.channels(self.lane) {
            sheet.say(&["SSUBSCRIBE", &channel]);
        }
        self.ask(sheet, Then::Restored).await;
    }

    async fn do_asked(&mut self, all: Vec<Asked>) {
        let (mut changes, mut sheet) = (Vec::new(), Sheet::default());
        for one in all {
            match one {
                // They take effect in the order in which they were asked for.
                Asked::Change(change) => {
                    let channel = self.keys.live(&change.topic);
                    if self.board.want(&channel, &change.topic, change.wanted, self.lane) {
                        sheet.say(&[if change.wanted { "SSUBSCRIBE" } else { "SUNSUBSCRIBE" }, &channel]);
                        changes.push(change);
                    } else {
                        drop(change.done.send(Err(Failed::Elsewhere)));
                    }
                }
                Asked::TakeOver(channels, done) => {
                    self.unsettled = Instant::now() + UNSETTLED;
                    if !self.up {
                        let _ = done.send(false);
                        continue;
                    }
                    let mut sheet = Sheet::default();
                    for channel in &channels {
                        sheet.say(&["SSUBSCRIBE", channel]);
                    }
                    self.ask(sheet, Then::TakenOver(done)).await;
                }
            }
        }
        if self.up && !changes.is_empty() {
            self.ask(sheet, Then::Changed(changes)).await;
        } else {
            self.pending.extend(changes);
        }
    }

    /// Takes a frame, and some of those that have come with it.
    async fn hear(&mut self, frame: BytesFrame) {
        let mut next = Ok(Some(frame));
        for left in (0..PORTION).rev() {
            let outcome = match next {
                Ok(Some(frame)) => self.take(frame).await,
                Ok(None) => return,
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                return self.part(&error).await;
            }
            if left == 0 {
                return;
            }
            // It may have been given up meanwhile.
            next = self.wire.as_mut().map_or(Ok(None), Wire::next_here);
        }
    }

    async fn take(&mut self, frame: BytesFrame) -> Result<(), Error> {
        if let BytesFrame::Push { data, .. } = frame {
            self.pushed(data).await;
            return Ok(());
        }
        let out_of_step = || Error::new(ErrorKind::Protocol, "an answer to nothing that was asked");
        let batch = self.batches.front_mut().ok_or_else(out_of_step)?;
        if let Some(error) = refusal(&frame) {
            tracing::debug!(%error, lane = self.lane, "subscriptions are not in force");
            batch.refused = true;
            // Maybe the slot is another primary's.
            self.board.doubts.notify_one();
            return Ok(());
        }
        let words = text(&frame).ok_or_else(out_of_step)?;
        if matches!(batch.then, Then::Counted(_)) && words.starts_with("id=") {
            self.counted = words.split(' ').find_map(|field| field.strip_prefix("ssub=")?.parse().ok());
            return Ok(());
        }
        if words.parse() != Ok(batch.number) {
            return Err(out_of_step());
        }
        if let Some(batch) = self.batches.pop_front() {
            self.answered(batch).await;
        }
        Ok(())
    }

    async fn answered(&mut self, batch: Batch) {
        match batch.then {
            Then::Changed(changes) => {
                if batch.refused {
                    self.lose(&"a subscription was refused").await;
                }
                if self.up {
                    confirm(changes);
                } else {
                    self.pending.extend(changes);
                }
            }
            Then::TakenOver(done) => {
                let _ = done.send(self.up && !batch.refused);
            }
            // The next tick tries again.
            Then::Restored if batch.refused => tracing::warn!("could not subscribe again yet"),
            // In this order, or something could be lost after `Lost`.
            Then::Restored => {
                (self.up, self.differs, self.retry) = (true, false, Retry::soon());
                self.standing.back(self.lane).await;
                self.outlet.go_on();
                tracing::info!("the subscriber connection is back");
                confirm(std::mem::take(&mut self.pending));
            }
            Then::Counted(Some(wanted)) if !batch.refused => self.compare(wanted).await,
            Then::Counted(_) => {}
        }
    }

    /// Compares what Redis has with what was wanted when it was asked. Once they may differ while slots move; twice in a
    /// row everything is put in force anew.
    async fn compare(&mut self, wanted: usize) {
        let differs = self.counted.is_some_and(|counted| counted != wanted);
        if differs {
            self.board.doubts.notify_one();
        }
        if std::mem::replace(&mut self.differs, differs) && differs {
            let found = format!("redis has {:?} subscriptions, not {wanted}", self.counted);
            if self.counted > Some(wanted) {
                // Which are too many, only a new connection is sure not to have.
                self.part(&found).await;
            } else {
                self.lose(&found).await;
            }
        }
    }

    async fn look_after(&mut self) {
        for batch in &mut self.batches {
            if let Then::Changed(changes) = &mut batch.then {
                give_up_late(changes);
            }
        }
        give_up_late(&mut self.pending);
        if self.batches.front().is_some_and(|batch| batch.since.elapsed() >= SILENCE) {
            return self.part(&"redis owes an answer for too long").await;
        }
        if !self.up {
            // Maybe there is another primary.
            self.board.doubts.notify_one();
        }
        if self.wire.is_none() || !self.batches.is_empty() {
            return;
        }
        let soon = self.differs || Instant::now() < self.unsettled;
        if !self.up && self.spoken.elapsed() >= TICK {
            self.restore().await;
        } else if self.up && self.spoken.elapsed() >= if soon { SOON } else { HEARTBEAT } {
            let mut sheet = Sheet::default();
            sheet.say(&["CLIENT", "INFO"]);
            self.counted = None;
            self.ask(sheet, Then::Counted(self.board.count(self.lane))).await;
        }
    }

    async fn pushed(&mut self, data: Vec<BytesFrame>) {
        let Ok([kind, channel, said]) = <[BytesFrame; 3]>::try_from(data) else { return };
        let (Some(kind), Some(channel)) = (text(&kind), text(&channel)) else { return };
        match (kind, said) {
            ("smessage", BytesFrame::BlobString { data, .. }) if self.up => self.outlet.pass(channel, data).await,
            ("sunsubscribe", _) if self.board.topic(channel, self.lane).is_some() => {
                // Taken away, unless it was wanted again just now.
                self.unsettled = Instant::now() + UNSETTLED;
            }
            _ => {}
        }
    }
}

fn confirm(changes: Vec<Change>) {
    for change in changes {
        drop(change.done.send(Ok(())));
    }
}

/// Whoever asked has waited for long enough; what was asked for stays wanted.
fn give_up_late(changes: &mut Vec<Change>) {
    for change in changes.extract_if(.., |change| change.since.elapsed() >= ANSWER) {
        drop(change.done.send(Err(Failed::With(silent()))));
    }
}

async fn next_frame(wire: &mut Option<Wire>) -> Result<BytesFrame, Error> {
    match wire {
        Some(wire) => wire.next().await,
        None => pending().await,
    }
}

async fn next_wire(opening: &mut Option<BoxFuture<'static, Result<Wire, Error>>>) -> Result<Wire, Error> {
    match opening {
        Some(opening) => opening.await,
        None => pending().await,
    }
}
