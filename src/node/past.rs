//! What rooms with a history keep of their frames.
//!
//! Frames of such a room are entries of its history: one append for each batch, which keeps it and publishes it in one
//! step. A node with members follows the history ([`Following`], one for each room, however many members), and hands
//! each entry to them in the one order that it has. Who comes back reads what it has missed from the history, at the
//! pace at which its peer takes it, until it stands where its node stands; then it is given what its node is given.
//! Between the two is no seam: both are under one lock.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use dashmap::{DashMap, Entry as Slot};
use parking_lot::RwLock;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Anchor, Backlog, ClientMail, Facts, Node, Resumption, Standing, Trace,
    clock::now_millis,
    follow::{Followed, Follower},
    story::RETRY,
};
use crate::{
    broker::{BrokerError, Entry, Keep, Page, Share, Tally, Writer},
    hub::{Hearing, Outbox, Source},
    protocol::{Envelope, Failure, History, Mark, PairId, Position, RoomName, Run, Topic},
};

/// How many entries are read at a time on the way back to where a pipe begins: at most some MiB.
const PAGE: usize = 32;
/// By how much the clocks of a node and the broker may differ before frames are taken for too old too early.
const CLOCKS_DIFFER: Duration = Duration::from_secs(2);

/// Where a node stands in a room's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reach {
    /// Behind which entry.
    pub position: Position,
    /// How many frames the room had kept by then.
    pub total: u64,
    /// Which history.
    pub era: u32,
}

/// A room's history, followed by this node for as long as somebody holds this.
pub struct Following {
    place: Arc<Stand>,
    _stop: DropGuard,
}

/// What the task that follows shares with those for whom it does.
struct Stand {
    room: RoomName,
    /// `None` until it is known. Whoever hands an entry out, or begins to be handed out to, holds this lock.
    at: RwLock<Option<Reach>>,
    moved: watch::Sender<()>,
}

impl Following {
    /// Completes when the node has moved on, from the moment on when this is called.
    pub fn moved(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut moved = self.place.moved.subscribe();
        async move { drop(moved.changed().await) }
    }

    /// Lets an outbox hear what is handed out from now on, if it has all that was before: what stands at `position`.
    /// False when the node is elsewhere.
    pub fn join(&self, outbox: &Outbox, position: Position) -> bool {
        let at = self.place.at.read();
        let here = at.is_some_and(|at| at.position == position);
        if here {
            outbox.hear(Hearing::All);
        }
        here
    }

    /// Whether the node stands behind that position.
    #[must_use]
    pub fn is_beyond(&self, position: Position) -> bool {
        self.place.at.read().is_some_and(|at| at.position.offset > position.offset)
    }

    /// Calls `look` with where the node stands, while nothing is handed out.
    pub fn look<T>(&self, look: impl FnOnce(Reach) -> T) -> Option<T> {
        self.place.at.read().map(look)
    }
}

/// The rooms whose histories this node follows.
pub(super) type Followings = DashMap<RoomName, Weak<Following>>;

/// What an entry of a room's history is to one of its members.
pub enum Said {
    /// Frames: for it, or (its own) not.
    Frames(Run, bool),
    /// A mark among the frames.
    Mark(Arc<Mark>),
    /// Of another version.
    Unknown,
}

impl Said {
    /// Reads an entry for a member.
    #[must_use]
    pub fn read(payload: &Bytes, member: PairId) -> Self {
        match Envelope::read(payload) {
            Ok(Envelope::Ordered { except, run }) => Self::Frames(run, except != Some(member)),
            Ok(Envelope::Mark { mark, .. }) => Self::Mark(Arc::new(mark)),
            _ => Self::Unknown,
        }
    }

    /// How many frames, for whomever.
    #[must_use]
    pub fn frames(&self) -> u64 {
        if let Self::Frames(run, _) = self { run.frames() } else { 0 }
    }
}

/// What a client wants of the frames before it came.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    /// How many frames it has received on its last socket.
    pub received: Option<u64>,
    /// Which socket that was; the last one, when nothing is said.
    pub epoch: Option<u64>,
    /// How many of the room's last frames it wants if it has not been here before.
    pub replay: Option<u64>,
}

/// Where a pipe begins.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// Behind which entry.
    pub after: Position,
    /// How many frames of the next one that are for this member it has had.
    pub skip: u64,
    /// The last entry that there was.
    pub head: Position,
    /// Its base: what its count, 0, stands for.
    pub anchor: Anchor,
    /// Which history.
    pub era: u32,
    /// What its siblings are to be told when it has all up to `head`, if anything; what it is given is counted then.
    pub resumed: Option<Resumption>,
}

/// What a client is told of its room's history when it comes.
pub struct Past {
    /// Where it begins.
    pub start: Start,
    /// How many own frames of its pair stand in the history.
    pub own: u64,
    /// How much the room keeps.
    pub history: History,
    /// Holds this node to following it.
    pub following: Arc<Following>,
}

impl Node {
    /// How much a history keeps.
    #[must_use]
    pub fn keep_of(history: History) -> Keep {
        Keep { events: 1, age: Duration::from_secs(history.seconds), most: history.messages }
    }

    /// Adds to a room's history. A node without its lease says nothing: its client sockets may be somebody else's by
    /// now.
    ///
    /// # Errors
    /// When the broker can't be reached: then it may have been added or not.
    pub async fn contribute(
        &self,
        room: &RoomName,
        writer: Option<&Writer>,
        shares: &[Share],
        history: History,
    ) -> Result<Position, BrokerError> {
        if !self.leased() {
            return Err(BrokerError::Full);
        }
        self.broker.contribute(&Topic::Room(room.clone()), writer, shares, &Self::keep_of(history)).await
    }

    /// Follows a room's history, if this node does not already.
    pub fn follow_room(self: &Arc<Self>, room: &RoomName) -> Arc<Following> {
        let mut slot = match self.followings.entry(room.clone()) {
            Slot::Occupied(slot) => match slot.get().upgrade() {
                Some(following) => return following,
                None => slot,
            },
            Slot::Vacant(slot) => slot.insert_entry(Weak::new()),
        };
        let stop = CancellationToken::new();
        let place = Arc::new(Stand { room: room.clone(), at: RwLock::new(None), moved: watch::Sender::new(()) });
        let following = Arc::new(Following { place: Arc::clone(&place), _stop: stop.clone().drop_guard() });
        slot.insert(Arc::downgrade(&following));
        drop(slot);
        let node = Arc::clone(self);
        self.spawn("history of a room", async move {
            stop.run_until_cancelled(node.stopped.run_until_cancelled(node.follow(&place))).await;
            // Another may have begun meanwhile.
            node.followings.remove_if(&place.room, |_, following| following.strong_count() == 0);
        });
        following
    }

    async fn follow(self: &Arc<Self>, stand: &Stand) {
        let topic = Topic::Room(stand.room.clone());
        let mut follower = loop {
            let begun = async {
                let place = self.newest_place(&topic).await?;
                Ok::<_, Failure>((place, Follower::open(self, topic.clone(), Some(place.position)).await?))
            };
            match begun.await {
                Ok((place, follower)) => {
                    *stand.at.write() = Some(place);
                    break follower;
                }
                Err(_) => sleep(RETRY).await,
            }
        };
        let mut hole = false;
        loop {
            stand.moved.send_replace(());
            match follower.next().await {
                Followed::Piece(piece) => {
                    self.hand_out(stand, piece.position, piece.payload.clone(), std::mem::take(&mut hole));
                }
                Followed::Gap(_) => hole = true,
                Followed::Aside(..) => {}
            }
        }
    }

    async fn newest_place(&self, topic: &Topic) -> Result<Reach, BrokerError> {
        let newest = self.broker.latest(topic, None, 1).await?;
        let place = newest.into_iter().next().and_then(|Entry { position, payload, .. }| {
            let (Tally { total, era, .. }, _) = Tally::split(payload)?;
            Some(Reach { position, total, era })
        });
        Ok(place.unwrap_or_default())
    }

    /// Hands an entry to the members here. If entries before it are missing, they are told so first.
    fn hand_out(&self, stand: &Stand, position: Position, payload: Bytes, hole: bool) {
        let Some((tally, said)) = Tally::split(payload) else { return };
        let mut at = stand.at.write();
        let room = self.hub.room(&stand.room);
        let envelope = Envelope::read(&said);
        if let (true, Some(room), Some(before)) = (hole, &room, *at) {
            let frames = if let Ok(Envelope::Ordered { run, .. }) = &envelope { run.frames() } else { 0 };
            let from = Reach { position, total: tally.total - frames, era: tally.era };
            let lost = (before.era == from.era).then(|| from.total.saturating_sub(before.total));
            for pair in room.pairs() {
                self.leave_mail(pair, ClientMail::Missed { room: stand.room.clone(), lost, from });
            }
        }
        match (room, envelope) {
            (Some(room), Ok(Envelope::Ordered { except, run })) => room.fan_out(&run, Source::Abroad, except),
            (Some(room), Ok(Envelope::Mark { mark, .. })) => room.fan_out_mark(&Arc::new(mark), Source::Abroad),
            (_, Ok(_)) => {}
            (_, Err(why)) => tracing::warn!(room = %stand.room, why, "an entry could not be read"),
        }
        *at = Some(Reach { position, total: tally.total, era: tally.era });
    }

    /// Reads a part of a room's history.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn read_room(&self, room: &RoomName, after: Position, limit: usize) -> Result<Page, BrokerError> {
        self.broker.read(&Topic::Room(room.clone()), after, limit).await
    }

    /// Where a pipe of the pair begins in its room's history, and its base in the pair's facts.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn begin_past(
        self: &Arc<Self>,
        (pair, epoch): (PairId, u64),
        facts: &mut Facts,
        history: History,
        wish: Wish,
    ) -> Result<Past, Failure> {
        // Followed before it is looked at: who begins at what was newest then need not wait for the node.
        let following = self.follow_room(&facts.room);
        let topic = Topic::Room(facts.room.clone());
        let name = pair.to_string();
        let (own, page) =
            tokio::try_join!(self.broker.contributed(&topic, &name), self.broker.latest(&topic, None, PAGE))?;
        let before = facts.trace.take().map(|trace| *trace);
        let head = page.first().and_then(|entry| Some((entry.position, Tally::split(entry.payload.clone())?.0)));
        let standing =
            Standing { total: head.map_or(0, |(_, tally)| tally.total), era: head.map_or(0, |(_, t)| t.era), own };
        let known = before.as_ref().filter(|before| before.room == facts.room);
        let backlog = match known {
            Some(trace) => Some(trace.backlog(standing, wish.received, wish.epoch)),
            None => wish.replay.map(|frames| {
                // Batches are kept whole: who is new gets no more than the room keeps, all the same.
                let frames = Some(frames.min(history.messages));
                Backlog { frames, pushed: 0, exact: true }
            }),
        };
        let own = own.or(known.map(Trace::own)).unwrap_or(0);
        let base = Anchor { epoch, count: 0, total: standing.total, own, sure: true };
        let at = head.map_or(Position::START, |(position, _)| position);
        let mut start = Start { after: at, skip: 0, head: at, anchor: base, era: standing.era, resumed: None };
        let wanted = backlog.and_then(|backlog| backlog.frames).unwrap_or(0);
        let found = self.walk_back((pair, &topic), page, Self::keep_of(history).age, wanted, &mut start).await?;
        start.resumed = backlog.map(|Backlog { frames, pushed, exact }| {
            // A new member that wants more than there is misses nothing that was ever its.
            let lost = frames.map(|frames| if known.is_some() { frames - found + pushed } else { 0 });
            // Where nobody knows what it had, what is not kept any more may have been given to it or not.
            let lost = lost.filter(|lost| *lost == 0 || exact || wish.received.is_some());
            Resumption { replayed: 0, lost, exact }
        });
        facts.trace = Some(Box::new(Trace::begun(before, &facts.room, standing.era, start.anchor)));
        Ok(Past { start, own, history, following })
    }

    /// Goes back from the head until `wanted` frames for the member lie behind; returns how many do.
    async fn walk_back(
        &self,
        (pair, topic): (PairId, &Topic),
        mut page: Vec<Entry>,
        age: Duration,
        wanted: u64,
        start: &mut Start,
    ) -> Result<u64, Failure> {
        let oldest = now_millis().saturating_sub((age + CLOCKS_DIFFER).as_millis() as u64);
        let mut found = 0;
        while let Some(last) = page.last().map(|entry| entry.position) {
            let full = page.len() == PAGE;
            for entry in page {
                let Some((tally, said)) = Tally::split(entry.payload) else { return Ok(found) };
                if found >= wanted || tally.at < oldest {
                    return Ok(found);
                }
                let (frames, own) = match Said::read(&said, pair) {
                    Said::Frames(run, true) => (run.frames(), 0),
                    Said::Frames(run, false) => (0, run.frames()),
                    Said::Mark(_) | Said::Unknown => (0, 0),
                };
                let skip = (found + frames).saturating_sub(wanted);
                found += frames - skip;
                start.after = entry.previous;
                start.skip = skip;
                start.anchor.total = tally.total - frames - own + skip;
                start.anchor.own -= own.min(start.anchor.own);
            }
            if !full || found >= wanted {
                break;
            }
            page = self.broker.latest(topic, Some(last), PAGE).await?;
        }
        Ok(found)
    }
}
