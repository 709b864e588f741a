//! A client in a room that keeps its frames: what it missed is read from the room's history, as fast as its peer takes
//! it, before it hears what its node hands out; and what it sends is appended there.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::json;

use super::{client::Client, sending::Sending};
use crate::{
    broker::{BrokerError, Page, Tally},
    node::{Anchor, Following, Place, Said, Start, replay::Replay},
    protocol::{EventKind, History, Position, Topic},
};

/// How many entries are read at a time for a client that catches up: a few MiB at most.
const PAGE: usize = 16;
/// How long between two attempts to read.
const RETRY: std::time::Duration = std::time::Duration::from_millis(250);

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
    resumed: Option<(Option<u64>, bool)>,
    /// Where it has come to.
    place: Place,
    own: u64,
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

impl Kept {
    pub(super) fn new(following: Arc<Following>, sending: Sending, start: Start) -> Self {
        let Start { after, skip, head, anchor, era, resumed } = start;
        let catching = Catching {
            replay: Replay::new(after),
            skip,
            head,
            replayed: 0,
            resumed,
            place: Place { position: after, total: anchor.total - skip, era },
            own: anchor.own,
            step: None,
        };
        Self { following, sending, catching: Some(catching), anchor_due: None }
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
        Some(kept) => kept.news().await,
        None => std::future::pending().await,
    }
}

impl Client {
    /// The room keeps its frames: from here on.
    pub(super) fn begin_kept(&mut self, following: Arc<Following>, history: History, own: u64, start: Start) {
        let sending = Sending::new(&self.node, self.pair, self.facts.room.clone(), history, own);
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
            self.read_kept(std::time::Duration::ZERO);
        }
    }

    fn read_kept(&mut self, after: std::time::Duration) {
        let node = Arc::clone(&self.node);
        let topic = Topic::Room(self.facts.room.clone());
        if let Some(Kept { catching: Some(catching), .. }) = self.kept.as_deref_mut() {
            let at = catching.replay.at();
            catching.step = Some(Box::pin(async move {
                if !after.is_zero() {
                    tokio::time::sleep(after).await;
                }
                Caught::Page(node.read_room(&topic, at, PAGE).await)
            }));
        }
    }

    fn catch(&mut self, page: Page) {
        let Some(Kept { catching: Some(catching), .. }) = self.kept.as_deref_mut() else { return };
        let turn = catching.replay.page(page, PAGE);
        if let Some(gap) = turn.gap {
            // What went while it was on its way.
            let (lost, _) = catching.resumed.unwrap_or((Some(0), true));
            catching.resumed = Some((gap.lost.and(lost), false));
            catching.skip = 0;
        }
        let mut more = None;
        for entry in turn.entries {
            let Some((tally, payload)) = Tally::split(entry.payload) else { continue };
            match Said::read(&payload, self.pair) {
                Said::Frames(mut run, true) => {
                    if more.is_none() && tally.total > catching.place.total + run.frames() && turn.gap.is_some() {
                        // The first behind a gap says how many frames it was.
                        let lost = tally.total - catching.place.total - run.frames();
                        if let Some((Some(before), _)) = &mut catching.resumed {
                            *before += lost;
                        }
                    }
                    drop(run.split_frames(std::mem::take(&mut catching.skip)));
                    if entry.position.offset <= catching.head.offset {
                        catching.replayed += run.frames();
                    }
                    self.outbox.push_kept(&run);
                }
                Said::Frames(run, false) => catching.own += run.frames(),
                Said::Nothing => {}
            }
            more = Some(());
            catching.place = Place { position: entry.position, total: tally.total, era: tally.era };
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
        if let Some((lost, exact)) = resumed {
            let data = json!({"epoch": self.fence.epoch, "replayed": replayed, "lost": lost, "exact": exact});
            self.story.raise(EventKind::ClientResumed, data, None);
        }
        if let Some(trace) = &mut self.facts.trace {
            trace.era = catching_era(trace.era, &kept.following);
        }
    }

    /// Frames that the node should have handed out are missing.
    pub(super) fn missed(&mut self, room: &crate::protocol::RoomName, lost: Option<u64>) {
        let catching = self.kept.as_deref().is_none_or(|kept| kept.catching.is_some());
        if room != self.room.name() || catching {
            return;
        }
        let data = json!({"epoch": self.fence.epoch, "replayed": 0, "lost": lost, "exact": false});
        self.story.raise(EventKind::ClientResumed, data, None);
        self.anchor(true);
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
        let tail = || {
            let level = self.outbox.level();
            level.taken_frames + level.queued_frames
        };
        let told = match &kept.catching {
            Some(catching) => Some((tail(), catching.place, catching.own)),
            None => kept.following.look(|place| (tail(), place, kept.sending.own_at(place.position.offset))),
        };
        kept.anchor_due = None;
        if let (Some((count, place, own)), Some(trace)) = (told, &mut self.facts.trace) {
            trace.era = place.era;
            trace.add(Anchor { epoch: self.fence.epoch, count, total: place.total, own, sure });
            self.save_facts();
        }
    }
}
