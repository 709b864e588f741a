//! A client in a room that keeps its frames: what it missed is read from the room's history, as fast as its peer takes
//! it, before it hears what its node hands out; and what it sends is appended there.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::time::Duration;

use super::{
    client::Client,
    pipe::BEHIND,
    sending::{RETRY, Sending},
};
use crate::{
    broker::{BrokerError, Page, Tally},
    node::{Anchor, Following, Past, Reach, Resumption, Said, Start, Stop, pause, replay::Replay},
    protocol::{EventKind, Position, RoomName},
};

/// How much is read at a time for a client that catches up: about so many bytes, as far as the last entries tell, and so
/// many entries at most.
const PORTION: usize = 256 << 10;
const PAGE: usize = 64;
/// How long what a client has sent may take to be kept when it is gone.
const LAST_FRAMES: Duration = Duration::from_secs(5);

/// What a client has to do with the history of its room.
pub(super) struct Kept {
    following: Arc<Following>,
    pub(super) sending: Sending,
    catching: Option<Catching>,
    /// Another anchor is to be set, sure or not, as soon as it can be told.
    anchor_due: Option<bool>,
}

/// The way from where the pipe begins to where its node is.
struct Catching {
    replay: Replay,
    /// How many frames of the next entry it has had.
    skip: u64,
    /// Up to here it is a replay.
    head: Position,
    replayed: u64,
    /// What is to be told in the end.
    resumed: Option<Resumption>,
    /// Where it has come to.
    place: Reach,
    own: u64,
    /// How many entries are read at a time.
    page: usize,
    step: Option<BoxFuture<'static, Caught>>,
}

/// What a step on this way brought.
pub(super) enum Caught {
    /// The next entries.
    Page(Result<Page, BrokerError>),
    /// The node has moved on.
    Moved,
}

/// What has happened to it.
pub(super) enum News {
    /// Frames stand in the history.
    Sent,
    /// It came further.
    Caught(Caught),
}

impl Catching {
    /// It goes on behind a hole.
    fn miss(&mut self, from: Reach) {
        let same = self.place.era == from.era || self.place.era == 0;
        let lost = same.then(|| from.total.saturating_sub(self.place.total));
        let before = self.resumed.map_or(Some(0), |resumed| resumed.lost);
        let lost = before.zip(lost).map(|(before, lost)| before + lost);
        self.resumed = Some(Resumption { replayed: 0, lost, exact: false });
        self.skip = 0;
    }
}

impl Kept {
    pub(super) fn new(following: Arc<Following>, sending: Sending, start: Start) -> Self {
        let Start { after, skip, head, anchor, era, resumed } = start;
        let catching = Catching {
            replay: Replay::new(after),
            skip,
            head,
            replayed: 0,
            resumed,
            place: Reach { position: after, total: anchor.total - skip, era },
            own: anchor.own,
            page: 2,
            step: None,
        };
        Self { following, sending, catching: Some(catching), anchor_due: None }
    }

    /// Whether the client is to be held back.
    pub(super) fn is_full(&self) -> bool {
        self.sending.is_full()
    }

    /// It is not to be given more.
    pub(super) fn stop_catching(&mut self) {
        self.catching = None;
    }

    pub(super) fn is_pending(&self) -> bool {
        !self.sending.is_idle() || self.catching.as_ref().is_some_and(|catching| catching.step.is_some())
    }

    /// The next news. May be dropped while it waits.
    pub(super) async fn news(&mut self) -> News {
        let step = self.catching.as_mut().and_then(|catching| catching.step.as_mut());
        let step = async {
            match step {
                Some(step) => step.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            caught = step => {
                if let Some(catching) = &mut self.catching {
                    catching.step = None;
                }
                News::Caught(caught)
            }
            () = self.sending.proceed(), if !self.sending.is_idle() => News::Sent,
        }
    }
}

/// News of what may not be there.
pub(super) async fn news_of(kept: &mut Option<Box<Kept>>) -> News {
    match kept {
        // Boxed: few clients have it, and each would be as large.
        Some(kept) => Box::pin(kept.news()).await,
        None => std::future::pending().await,
    }
}

impl Client {
    /// The room keeps its frames: from here on.
    pub(super) fn begin_kept(&mut self, past: Past) {
        let Past { start, own, history, following } = past;
        let sending = Sending::new(&self.node, (self.pair, self.fence), self.facts.room.clone(), history, own);
        self.kept = Some(Box::new(Kept::new(following, sending, start)));
    }

    pub(super) fn heard_of_kept(&mut self, news: News) {
        match news {
            News::Sent => {}
            News::Caught(Caught::Page(Ok(page))) => self.catch(page),
            News::Caught(Caught::Page(Err(_))) => self.read_kept(RETRY),
            News::Caught(Caught::Moved) => self.stand_or_go_on(),
        }
        self.set_anchor_if_due();
    }

    /// Goes on catching up, if the peer has taken enough of what it was given.
    pub(super) fn catch_up(&mut self) {
        let Some(Kept { catching: Some(Catching { step: None, .. }), .. }) = self.kept.as_deref() else { return };
        let level = self.outbox.level();
        if level.queued_bytes <= level.limit / 4 {
            self.read_kept(Duration::ZERO);
        }
    }

    fn read_kept(&mut self, after: Duration) {
        let node = Arc::clone(&self.node);
        let room = self.facts.room.clone();
        if let Some(Kept { catching: Some(catching), .. }) = self.kept.as_deref_mut() {
            let (at, page) = (catching.replay.at(), catching.page);
            catching.step = Some(Box::pin(async move {
                pause(after).await;
                Caught::Page(node.read_room(&room, at, page).await)
            }));
        }
    }

    fn catch(&mut self, page: Page) {
        let Some(Kept { catching: Some(catching), .. }) = self.kept.as_deref_mut() else { return };
        let (bytes, asked) = (page.entries.iter().map(|entry| entry.payload.len()).sum::<usize>(), catching.page);
        catching.page = (PORTION * page.entries.len() / bytes.max(1)).clamp(1, PAGE);
        let turn = catching.replay.page(page, asked);
        let mut hole = turn.gap.is_some();
        if hole && turn.entries.is_empty() {
            catching.resumed = Some(Resumption { replayed: 0, lost: None, exact: false });
        }
        for entry in turn.entries {
            let Some((tally, payload)) = Tally::split(entry.payload) else { continue };
            let said = Said::read(&payload, self.pair);
            if std::mem::take(&mut hole) {
                // What went while it was on its way.
                let from = Reach { position: entry.previous, total: tally.total - said.frames(), era: tally.era };
                catching.miss(from);
                let own = catching.own;
                let anchor =
                    Anchor { epoch: self.fence.epoch, count: self.outbox.tail(), total: from.total, own, sure: true };
                if let Some(trace) = &mut self.facts.trace {
                    trace.go_on(from.era, anchor);
                }
            }
            match said {
                Said::Frames(mut run, true) => {
                    drop(run.split_frames(std::mem::take(&mut catching.skip)));
                    if entry.position.offset <= catching.head.offset {
                        catching.replayed += run.frames();
                    }
                    self.outbox.push_kept(&run);
                }
                Said::Frames(run, false) => catching.own += run.frames(),
                Said::Mark(mark) => self.outbox.push_mark(&mark, mark.weight()),
                Said::Unknown => {}
            }
            catching.place = Reach { position: entry.position, total: tally.total, era: tally.era };
        }
        self.writing = true;
        if !turn.again {
            self.stand_or_go_on();
        }
    }

    /// Hears what its node hands out from now on, if it stands where the node stands; else it waits for the node, or
    /// goes on reading.
    fn stand_or_go_on(&mut self) {
        let Some(kept) = self.kept.as_deref_mut() else { return };
        let Some(catching) = &mut kept.catching else { return };
        // Asked for before it is looked, so that no move is missed.
        let moved = kept.following.moved();
        let position = catching.replay.at();
        if !kept.following.join(&self.outbox, position) {
            if !kept.following.is_beyond(position) {
                catching.step = Some(Box::pin(async move {
                    moved.await;
                    Caught::Moved
                }));
            }
            return;
        }
        let Some(Catching { replayed, resumed, .. }) = kept.catching.take() else { return };
        if let Some(resumed) = resumed {
            self.tell_resumed(Resumption { replayed, ..resumed });
        }
    }

    /// The socket ends: what its client has sent is kept before anybody hears of that, and where its pipe stopped is
    /// noted. `clean` says whether the peer had all that was written to it. One that lost its pair says nothing more.
    pub(super) async fn stop_kept(&mut self, count: u64, clean: bool, disowned: bool) {
        let Some(mut kept) = self.kept.take() else { return };
        if disowned {
            kept.sending.give_up();
            return;
        }
        if tokio::time::timeout(LAST_FRAMES, kept.sending.finish()).await.is_err() {
            self.refuse_all(BEHIND, kept.sending.give_up());
        }
        if let Some(trace) = &mut self.facts.trace {
            trace.stop = Some(Stop { epoch: self.fence.epoch, count, clean });
        }
        self.save_facts();
    }

    /// The client leaves the room: what it has sent there is kept without it.
    pub(super) fn leave_kept(&mut self) {
        let Some(mut kept) = self.kept.take() else { return };
        if !kept.sending.is_idle() {
            let pair = self.pair;
            self.node.spawn("last frames in a room", async move {
                if tokio::time::timeout(LAST_FRAMES, kept.sending.finish()).await.is_err() {
                    tracing::warn!(%pair, frames = kept.sending.give_up(), "frames were not kept: the broker is away");
                }
            });
        }
    }

    /// Frames that the node should have handed out are missing.
    pub(super) fn missed(&mut self, room: &RoomName, lost: Option<u64>, from: Reach) {
        let Some(Kept { catching: None, following, sending, .. }) = self.kept.as_deref() else { return };
        if room != self.room.name() {
            return;
        }
        // What was given behind the hole goes up together with the room's count again.
        let own = |place: Reach| sending.own_at(place.position.offset);
        let anchor = following.look(|place| {
            let given = (place.total - from.total).saturating_sub(own(place) - own(from));
            let count = self.outbox.tail().saturating_sub(given);
            Anchor { epoch: self.fence.epoch, count, total: from.total, own: own(from), sure: true }
        });
        if let (Some(anchor), Some(trace)) = (anchor, &mut self.facts.trace) {
            trace.go_on(from.era, anchor);
            self.save_facts();
        }
        self.tell_resumed(Resumption { replayed: 0, lost, exact: false });
    }

    pub(super) fn tell_resumed(&mut self, resumed: Resumption) {
        self.story.raise(EventKind::ClientResumed, resumed.told(self.fence.epoch), None);
    }

    /// Notes where the pipe stands in the room's history: its count does not go up together with the room's any more
    /// (not sure), or does so again from here on.
    pub(super) fn anchor(&mut self, sure: bool) {
        if let Some(kept) = self.kept.as_deref_mut() {
            kept.anchor_due = Some(sure);
            self.set_anchor_if_due();
        }
    }

    fn set_anchor_if_due(&mut self) {
        let Some(kept) = self.kept.as_deref_mut() else { return };
        let Some(sure) = kept.anchor_due.filter(|_| !kept.sending.is_busy()) else { return };
        let told = match &kept.catching {
            Some(catching) => Some((self.outbox.tail(), catching.place, catching.own)),
            None => {
                kept.following.look(|place| (self.outbox.tail(), place, kept.sending.own_at(place.position.offset)))
            }
        };
        kept.anchor_due = None;
        if let (Some((count, place, own)), Some(trace)) = (told, &mut self.facts.trace) {
            trace.go_on(place.era, Anchor { epoch: self.fence.epoch, count, total: place.total, own, sure });
            self.save_facts();
        }
    }
}
