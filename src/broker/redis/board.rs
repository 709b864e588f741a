//! Where everything goes at the moment: the one place that the tasks of all lanes share.
//!
//! A *lane* is what belongs to one primary: its connections, its queue, its tasks. The board says which lane each slot
//! has, and through which lane each channel is listened to. With a single server there is one lane, for ever; behind
//! Sentinels one at a time; in Redis Cluster one for each primary.
//!
//! # Order
//! What one node publishes to one topic must never be reordered, and a slot that moves to another lane is where it
//! could be: what is still on its way through the old primary (in its queue, in the buffer of a socket that it has not
//! read, on the cluster's bus) races with what goes through the new one. So whatever is published carries its sender
//! and the slot's *era* there, a number that goes up with each such move. What waits in the old lane's queue moves
//! along, in its order; what has left it has the old era; and a receiver that has heard the new era takes nothing of an
//! older one from that sender any more. A frame may be lost at such a move, but none comes late.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use fred::util::redis_keyslot;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::{
    lane::Lane,
    message::{Outgoing, take_stamp},
    script::absent,
    topology::SLOTS,
};
use crate::{broker::BrokerError, protocol::Topic};

/// How many slots of senders have their eras remembered; when there are more, all are forgotten.
const ERAS: usize = 262_144;

/// Names a lane; never used again.
pub(super) type LaneId = u32;

/// Who is listened to for what.
struct Want {
    topic: Topic,
    /// The lane whose messages count.
    lane: LaneId,
    /// The lane that takes over, and subscribes already.
    next: Option<LaneId>,
}

struct Inside {
    /// For each slot its lane.
    owners: Vec<Option<LaneId>>,
    lanes: HashMap<LaneId, Arc<Lane>>,
    /// By channel.
    wanted: HashMap<String, Want>,
    /// Slots that are about to move, so that nothing new can be wanted of their old lane.
    frozen: HashSet<u16>,
}

/// What a slot's next owner is, where it has another one.
pub(super) type Moves = HashMap<u16, LaneId>;

pub(super) struct Board {
    inside: RwLock<Inside>,
    /// Who publishes here.
    sender: u64,
    /// The eras of slots that have moved since this node began; of the others it is zero.
    own: RwLock<HashMap<u16, u32>>,
    /// The newest era above zero that was heard of each sender and slot.
    heard: Mutex<HashMap<(u64, u16), u32>>,
    /// Somebody has seen a sign that the slots have moved.
    pub(super) doubts: Notify,
    /// The slots have moved.
    pub(super) moved: Notify,
    /// Something may be done by half, or undone: a command has failed, or slots have left an owner.
    unsettled: AtomicBool,
}

fn slot(channel: &str) -> u16 {
    redis_keyslot(channel.as_bytes()) % SLOTS
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            inside: RwLock::new(Inside {
                owners: vec![None; usize::from(SLOTS)],
                lanes: HashMap::new(),
                wanted: HashMap::new(),
                frozen: HashSet::new(),
            }),
            sender: rand::random(),
            own: RwLock::default(),
            heard: Mutex::default(),
            doubts: Notify::new(),
            moved: Notify::new(),
            unsettled: AtomicBool::new(false),
        }
    }

    /// The lane of a key or channel; none before its slot has an owner.
    pub(super) fn lane(&self, key: &str) -> Option<Arc<Lane>> {
        let inside = self.inside.read();
        inside.lane(key).cloned()
    }

    pub(super) fn lanes(&self) -> Vec<Arc<Lane>> {
        self.inside.read().lanes.values().cloned().collect()
    }

    /// Queues a payload at the lane that its channel has now. It can't move meanwhile: so payloads keep their order.
    pub(super) fn publish(&self, channel: String, head: &[u8], body: Bytes) -> Result<(), BrokerError> {
        let outgoing = Outgoing::new(&channel, self.sender, head, body);
        let inside = self.inside.read();
        let lane = inside.lane(&channel).ok_or_else(absent)?;
        lane.queue.push(channel, outgoing)
    }

    /// Makes a message ready to leave. Under the queue's lock, so that a move can tell what has left before it.
    pub(super) fn stamp(&self, channel: &str, outgoing: Outgoing) -> [Bytes; 3] {
        let own = self.own.read();
        let era = if own.is_empty() { None } else { own.get(&slot(channel)) };
        outgoing.leave(era.copied().unwrap_or_default())
    }

    /// Calls `pass` with the payload of a message (without its first byte), if it does not come late. No message is
    /// passed on meanwhile by another lane, or looking and passing on could be overtaken.
    pub(super) fn admit<T>(&self, channel: &str, message: Bytes, pass: impl FnOnce(Bytes) -> T) -> Option<T> {
        let (sender, era, payload) = take_stamp(message)?;
        let mut heard = self.heard.lock();
        if era > 0 || !heard.is_empty() {
            let key = (sender, slot(channel));
            let newest = heard.get(&key).copied().unwrap_or(0);
            if newest > era {
                return None;
            }
            if newest < era {
                if heard.len() >= ERAS {
                    heard.clear();
                }
                heard.insert(key, era);
            }
        }
        Some(pass(payload))
    }

    /// What has left before in these slots must not be heard after what leaves from now on. Slots that get their first
    /// owner begin with era zero.
    fn begin_era(&self, slots: impl Iterator<Item = u16>) {
        let mut own = self.own.write();
        for slot in slots {
            *own.entry(slot).or_default() += 1;
        }
    }

    /// What a message on this channel is about, if it is wanted from this lane.
    pub(super) fn topic(&self, channel: &str, lane: LaneId) -> Option<Topic> {
        let inside = self.inside.read();
        inside.wanted.get(channel).filter(|want| want.lane == lane).map(|want| want.topic.clone())
    }

    /// Notes that a channel is wanted (or not); false when it is another lane's by now, or in a moment.
    pub(super) fn want(&self, channel: &str, topic: &Topic, wanted: bool, lane: LaneId) -> bool {
        let mut inside = self.inside.write();
        let slot = slot(channel);
        if inside.owners[usize::from(slot)] != Some(lane) || inside.frozen.contains(&slot) {
            return false;
        }
        if wanted {
            let next = inside.wanted.get(channel).and_then(|before| before.next);
            inside.wanted.insert(channel.to_owned(), Want { topic: topic.clone(), lane, next });
        } else {
            inside.wanted.remove(channel);
        }
        true
    }

    /// What must be in force at a lane: what it is listened to for, and what it takes over.
    pub(super) fn channels(&self, lane: LaneId) -> Vec<String> {
        let inside = self.inside.read();
        let here = |want: &Want| want.lane == lane || want.next == Some(lane);
        inside.wanted.iter().filter(|(_, want)| here(want)).map(|(channel, _)| channel.clone()).collect()
    }

    /// How many channels a lane is listened to for; `None` while it takes over others.
    pub(super) fn count(&self, lane: LaneId) -> Option<usize> {
        let inside = self.inside.read();
        let taking = inside.wanted.values().any(|want| want.next == Some(lane));
        (!taking).then(|| inside.wanted.values().filter(|want| want.lane == lane).count())
    }

    /// Adds a lane that is connected.
    pub(super) fn add(&self, lane: Arc<Lane>) {
        self.inside.write().lanes.insert(lane.id, lane);
    }

    /// Those slots whose owner is not the lane that `target` says.
    pub(super) fn moves(&self, target: impl Fn(u16) -> Option<LaneId>) -> Moves {
        let inside = self.inside.read();
        let differs = |slot: &u16| {
            let to = target(*slot)?;
            (inside.owners[usize::from(*slot)] != Some(to)).then_some((*slot, to))
        };
        (0..SLOTS).filter_map(|slot| differs(&slot)).collect()
    }

    /// Marks what moves as taken over; returns, for each lane, what it must put in force and has not `done` yet.
    pub(super) fn hand_over(&self, moves: &Moves, done: &HashSet<String>) -> HashMap<LaneId, Vec<String>> {
        let mut inside = self.inside.write();
        let mut left: HashMap<LaneId, Vec<String>> = HashMap::new();
        for (channel, want) in &mut inside.wanted {
            let Some(to) = moves.get(&slot(channel)) else { continue };
            if want.next != Some(*to) || !done.contains(channel) {
                want.next = Some(*to);
                left.entry(*to).or_default().push(channel.clone());
            }
        }
        left
    }

    /// From now on nothing new is wanted of these slots' lanes.
    pub(super) fn freeze(&self, slots: impl Iterator<Item = u16>) {
        self.inside.write().frozen = slots.collect();
    }

    /// Gives slots to their next lanes: channels, what waits in the queues, and what comes from now on, in one step.
    /// False, and nothing happens, when there are channels that have not been handed over yet.
    pub(super) fn switch(&self, moves: &Moves, done: &HashSet<String>) -> bool {
        let mut inside = self.inside.write();
        let moving = |channel: &str| moves.get(&slot(channel)).copied();
        let ready = |(channel, want): (&String, &Want)| {
            moving(channel).is_none_or(|to| want.next == Some(to) && done.contains(channel))
        };
        if !inside.wanted.iter().all(ready) {
            return false;
        }
        let mut waiting = Vec::new();
        for lane in inside.lanes.values() {
            waiting.extend(lane.queue.remove(|channel| moves.get(&slot(channel)).is_some_and(|to| *to != lane.id)));
        }
        // Between taking what waits and putting it elsewhere: what left before has the old era, what follows the new.
        let left: Vec<_> = moves.keys().copied().filter(|slot| inside.owners[usize::from(*slot)].is_some()).collect();
        if !left.is_empty() {
            self.unsettle();
        }
        self.begin_era(left.into_iter());
        for waiting in waiting {
            if let Some(lane) = moves.get(&slot(waiting.channel())).and_then(|to| inside.lanes.get(to)) {
                lane.queue.put_back(waiting);
            }
        }
        for (slot, to) in moves {
            inside.owners[usize::from(*slot)] = Some(*to);
        }
        for (channel, want) in &mut inside.wanted {
            // A mark of a move that came to nothing goes, too.
            want.next = None;
            if let Some(to) = moves.get(&slot(channel)) {
                want.lane = *to;
            }
        }
        drop(inside);
        self.moved.notify_waiters();
        true
    }

    /// Something may be done by half, or undone.
    pub(super) fn unsettle(&self) {
        self.unsettled.store(true, Relaxed);
    }

    /// Whether something may be, since this was last asked.
    pub(super) fn take_unsettled(&self) -> bool {
        self.unsettled.swap(false, Relaxed)
    }

    /// Takes away the lanes that have no slots any more.
    pub(super) fn take_idle(&self) -> Vec<Arc<Lane>> {
        let mut inside = self.inside.write();
        let busy: HashSet<LaneId> = inside.owners.iter().flatten().copied().collect();
        let idle: Vec<_> = inside.lanes.keys().filter(|id| !busy.contains(id)).copied().collect();
        idle.iter().filter_map(|id| inside.lanes.remove(id)).collect()
    }
}

impl Inside {
    fn lane(&self, key: &str) -> Option<&Arc<Lane>> {
        self.lanes.get(&self.owners[usize::from(slot(key))]?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_is_not_admitted() {
        let (receiver, sender, other) = (Board::new(), Board::new(), Board::new());
        let message = |board: &Board, channel: &str, text: &'static str| {
            let outgoing = Outgoing::new(channel, board.sender, b"", text.into());
            let command = Bytes::from(board.stamp(channel, outgoing).concat());
            // Behind the last head of a word, and the first byte; before the end of the line.
            let word = command.windows(3).rposition(|bytes| bytes == b"\r\nn").unwrap();
            command.slice(word + 3..command.len() - 2)
        };
        let heard = |channel: &str, message: &Bytes| receiver.admit(channel, message.clone(), |payload| payload);
        let (one, two, else_where) =
            (message(&sender, "a", "1"), message(&sender, "a", "2"), message(&sender, "b", "x"));
        assert_eq!(heard("a", &one).unwrap(), "1");
        sender.begin_era([slot("a")].into_iter());
        let three = message(&sender, "a", "3");
        assert_eq!(heard("a", &three).unwrap(), "3");
        assert!(heard("a", &two).is_none(), "it was overtaken");
        assert_eq!(heard("b", &else_where).unwrap(), "x", "its slot has not moved");
        assert_eq!(heard("a", &message(&other, "a", "of another")).unwrap(), "of another");
        assert_eq!(heard("a", &three).unwrap(), "3");
        assert!(heard("a", &Bytes::from_static(b"short")).is_none());
    }
}
