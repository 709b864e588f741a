//! An outbox that crosses to another node, because its pair's next socket has opened there: no frame is lost, and none
//! comes twice.
//!
//! The broker gives a room's messages to every node in one order, so that a message is a place in what all of them hear:
//! a *cut*. Only what a node's own members say is handed out there before it has been through the broker.
//!
//! 1. The new node asks. The old one publishes the first cut, and from then on its outbox hears only what comes out of
//!    the broker: what members there say behind the cut is for the new node.
//! 2. Where the first cut comes out, the old node's outbox is complete, and is sent. The new node's `first` outbox hears
//!    from there on all that comes out, what members of the new node have said included.
//! 3. The new node publishes the second cut. What its members say behind that is heard by its `last` outbox, at once;
//!    where the cut comes out, `first` is complete, and `last` hears everything.
//!
//! What was sent, `first` and `last` are then put one behind the other. An interruption of live traffic ends it: what
//! waited is lost then, and counted as far as it can be.

use std::{collections::HashMap, sync::Arc};

use dashmap::DashMap;
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    sync::oneshot,
    time::{Duration, Instant, sleep, timeout_at},
};

use super::{Entry, Facts, Node, Parked, ReplyTo, Resumption};
use crate::{
    hub::{Hearing, Item, Outbox, Room},
    protocol::{Cause, Command, Crossed, Fence, Mail, NodeId, Notice, PairId, Reply, RoomName, Run},
};

/// How long a crossing may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many bytes are sent in a piece, and one run more.
const PIECE: usize = 128 << 10;

/// What is on its way, by the new node's number of it.
#[derive(Default)]
pub(super) struct Crossings {
    leaving: DashMap<(NodeId, u64), Leaving>,
    coming: Mutex<HashMap<u64, Coming>>,
}

struct Leaving {
    pair: PairId,
    parked: Parked,
    received: Option<u64>,
}

struct Coming {
    room: Arc<Room>,
    /// What was sent.
    items: Vec<Item>,
    first: Arc<Outbox>,
    last: Arc<Outbox>,
    /// Told at the second cut.
    complete: Option<oneshot::Sender<()>>,
}

/// `last` follows `first`.
fn join(first: &Outbox, last: &Outbox) {
    first.hear(Hearing::Nothing);
    last.put_before(first.drain());
    last.hear(Hearing::All);
}

impl Node {
    /// An outbox for a client that has entered a room.
    pub(super) fn new_outbox(&self, entry: &Entry, facts: &Facts) -> Arc<Outbox> {
        let settings = self.settings.pipe.with(&entry.ruling.spec, facts.chosen.as_deref());
        let outbox = Arc::new(Outbox::new(settings.queue_bytes, settings.slow));
        outbox.watch_marks(facts.watching.marks);
        outbox
    }

    /// Fetches what another node keeps for a pair's socket that has opened here, and takes the seat in its room.
    pub(super) async fn fetch_parked(
        self: &Arc<Self>,
        node: NodeId,
        (pair, fence): (PairId, Fence),
        facts: &Facts,
        entry: &Entry,
        received: Option<u64>,
    ) -> (Resumption, Arc<Room>, Arc<Outbox>) {
        let [first, last] = [(); 2].map(|()| self.new_outbox(entry, facts));
        first.hear(Hearing::Nothing);
        last.hear(Hearing::Nothing);
        let room = self.take_seat(pair, entry, &last);
        self.hub.enter(&entry.room, pair, &first);
        let (number, reply) = self.expect_reply();
        let (complete, completed) = oneshot::channel();
        let coming = Coming {
            room: Arc::clone(&room),
            items: Vec::new(),
            first: Arc::clone(&first),
            last: Arc::clone(&last),
            complete: Some(complete),
        };
        self.crossings.coming.lock().insert(number, coming);
        let command = Command::Unpark { room: entry.room.clone(), epoch: fence.epoch, received };
        let cause = Cause { key: None, id: None, sibling: None };
        let ask = Mail::Ask { number, from: self.id, pair, command, cause };
        let deadline = Instant::now() + PATIENCE;
        let said = match self.post_until_answered(node, &ask, number, reply, deadline).await {
            Ok(Reply::Done(said)) => said,
            _ => json!({}),
        };
        let whole = said["frames"].is_u64() && matches!(timeout_at(deadline, completed).await, Ok(Ok(())));
        let coming = self.crossings.coming.lock().remove(&number);
        self.hub.exit(&room, &first);
        let items = coming.map(|coming| coming.items).unwrap_or_default();
        let mut resumed = Resumption { replayed: 0, lost: said["lost"].as_u64(), exact: false };
        if whole {
            let arrived = items.iter().map(Item::frames).sum::<u64>();
            let missing = said["frames"].as_u64().unwrap_or(0).saturating_sub(arrived);
            last.put_before(items);
            let (waiting, dropped) = last.begin_anew();
            let dropped = dropped + first.level().dropped.frames;
            resumed.replayed = waiting;
            resumed.lost = resumed.lost.map(|lost| lost + missing + dropped);
            resumed.exact = said["exact"] == true;
        } else {
            join(&first, &last);
            if said["frames"].is_u64() {
                resumed.lost = None;
            }
            last.begin_anew();
        }
        (resumed, room, last)
    }

    /// The pair's new socket has opened on another node: what waits here is to cross.
    pub(super) fn unpark(
        self: &Arc<Self>,
        pair: PairId,
        (room, epoch): (&RoomName, u64),
        received: Option<u64>,
        (to, number): (NodeId, u64),
    ) {
        let Some((_, parked)) = self.parked.remove(&pair) else {
            return self.reply(ReplyTo::Node(to, number), Reply::Done(json!({})));
        };
        let fits = parked.is_for(room, epoch);
        let (room, outbox) = (Arc::clone(&parked.room), Arc::clone(&parked.outbox));
        self.crossings.leaving.insert((to, number), Leaving { pair, parked, received });
        let cut = || self.notify(room.name(), &Notice::Cut { to, number, second: false });
        if !fits || room.cut(&outbox, Hearing::Abroad, cut).is_err() {
            return self.give_crossing_up((to, number));
        }
        let node = Arc::clone(self);
        self.spawn("crossing", async move {
            sleep(PATIENCE).await;
            node.give_crossing_up((to, number));
        });
    }

    /// A cut came out of the broker.
    pub(super) fn cut(self: &Arc<Self>, to: NodeId, number: u64, second: bool) {
        if !second && let Some((_, leaving)) = self.crossings.leaving.remove(&(to, number)) {
            self.send_parked(leaving, to, number);
        }
        if to != self.id {
            return;
        }
        let mut all = self.crossings.coming.lock();
        let Some(coming) = all.get_mut(&number) else { return };
        if second {
            join(&coming.first, &coming.last);
            if let Some(complete) = coming.complete.take() {
                // Who gave up waiting is no error.
                let _ = complete.send(());
            }
            return;
        }
        coming.first.hear(Hearing::Broker);
        let cut = || self.notify(coming.room.name(), &Notice::Cut { to, number, second: true });
        if coming.room.cut(&coming.last, Hearing::Here, cut).is_err() {
            coming.complete = None;
        }
    }

    /// Sends an outbox that is complete.
    fn send_parked(self: &Arc<Self>, leaving: Leaving, to: NodeId, number: u64) {
        let Leaving { pair, parked, received } = leaving;
        self.hub.exit(&parked.room, &parked.outbox);
        let items = parked.outbox.drain();
        let frames = items.iter().map(Item::frames).sum::<u64>();
        let (mut piece, mut bytes) = (Vec::new(), 0);
        for item in items {
            bytes += item.bytes();
            piece.push(match item {
                Item::Run(run) => Crossed::Frames(run.wire().clone()),
                Item::Mark(mark, _) => Crossed::Mark((*mark).clone()),
            });
            if bytes >= PIECE {
                self.post(to, &Mail::Crossing { number, items: std::mem::take(&mut piece) });
                bytes = 0;
            }
        }
        self.post(to, &Mail::Crossing { number, items: piece });
        let ((_, dropped), (missed, exact)) = (parked.outbox.begin_anew(), parked.missed(received));
        let said = json!({"frames": frames, "lost": dropped + missed, "exact": exact});
        self.reply(ReplyTo::Node(to, number), Reply::Done(said));
        self.leave_parked(pair, parked);
    }

    /// A piece of an outbox arrived.
    pub(super) fn crossed(&self, number: u64, items: Vec<Crossed>) {
        let mut all = self.crossings.coming.lock();
        let Some(coming) = all.get_mut(&number) else { return };
        coming.items.extend(items.into_iter().filter_map(|item| match item {
            Crossed::Frames(wire) => Run::from_wire(wire).ok().map(Item::Run),
            Crossed::Mark(mark) => {
                let weight = mark.weight();
                Some(Item::Mark(Arc::new(mark), weight))
            }
        }));
    }

    /// What waits is lost.
    fn give_crossing_up(self: &Arc<Self>, (to, number): (NodeId, u64)) {
        if let Some((_, Leaving { pair, parked, received })) = self.crossings.leaving.remove(&(to, number)) {
            let lost = self.discard(&parked, received);
            self.reply(ReplyTo::Node(to, number), Reply::Done(json!({ "lost": lost })));
            self.leave_parked(pair, parked);
        }
    }

    fn leave_parked(self: &Arc<Self>, pair: PairId, parked: Parked) {
        let node = Arc::clone(self);
        self.spawn("leave", async move { node.give_up_parked(pair, &parked).await });
    }

    /// Live traffic was interrupted: cuts and frames may be missing.
    pub(super) fn end_crossings(self: &Arc<Self>) {
        let leaving: Vec<_> = self.crossings.leaving.iter().map(|leaving| *leaving.key()).collect();
        for crossing in leaving {
            self.give_crossing_up(crossing);
        }
        for coming in self.crossings.coming.lock().values_mut() {
            coming.complete = None;
        }
    }

    /// Whether an outbox is just coming here.
    pub(super) fn expects_crossing(&self) -> bool {
        !self.crossings.coming.lock().is_empty()
    }
}
