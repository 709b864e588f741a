//! What is kept: records, histories, groups, nodes. Plain data, changed under the medium's one lock.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque, hash_map::Entry as Place},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::roll::Roll;
use crate::{
    broker::{Census, Draft, Entry, Group, Keep, Page, Record, Rule, STAY, Sentence},
    protocol::{NodeId, PairId, Position, RoomName, Topic},
};

/// How far back an append looks for its own nonce.
const DEDUP: usize = 32;

/// How long a history without a record lives at least.
const ORPHAN: Duration = Duration::from_secs(60);

/// Something that may be kept for a limited time only.
pub(super) struct Timed<T> {
    pub(super) value: T,
    pub(super) until: Option<Instant>,
    /// Whether the heap of deadlines has an entry for this: never more than one, however often `until` moves.
    queued: bool,
}

impl<T> Timed<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value, until: None, queued: false }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// What a deadline is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Record(PairId),
    History(TopicOrder),
    Command(Box<(PairId, String)>),
    Writer(Box<(TopicOrder, String)>),
}

/// A topic in a heap, where what is equal must only be told apart, not sorted well.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct TopicOrder(pub(super) Topic);

impl PartialOrd for TopicOrder {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TopicOrder {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |topic: &Self| match &topic.0 {
            Topic::Pair(pair) => (0, pair.uuid(), None),
            Topic::Node(node) => (1, node.uuid(), None),
            Topic::Room(room) => (2, uuid::Uuid::nil(), Some(room.clone())),
            Topic::Cluster => (3, uuid::Uuid::nil(), None),
            Topic::Talk(room) => (4, uuid::Uuid::nil(), Some(room.clone())),
        };
        key(self).cmp(&key(other))
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Pairs' records.
    pub records: usize,
    /// Histories.
    pub histories: usize,
    /// Groups with members.
    pub groups: usize,
}

#[derive(Default)]
pub(super) struct Store {
    // Boxed what is large: a table has room for more than it holds.
    pub(super) records: HashMap<PairId, Box<Timed<Record>>>,
    pub(super) histories: HashMap<Topic, Box<Timed<History>>>,
    /// Those who contribute to a history that many write.
    pub(super) writers: HashMap<(TopicOrder, String), Box<Timed<Contributed>>>,
    /// Commands with keys.
    pub(super) commands: HashMap<(PairId, String), Box<Timed<Command>>>,
    pub(super) groups: HashMap<Group, Box<Roll>>,
    /// Who has come to a crowd (true) or left it, and is not told of yet.
    pub(super) untold: HashMap<RoomName, VecDeque<(bool, PairId)>>,
    pub(super) rules: BTreeMap<RoomName, Rule>,
    pub(super) nodes: BTreeMap<NodeId, Known>,
    pub(super) sentences: u64,
    due: BinaryHeap<Reverse<(Instant, Due)>>,
}

/// What a writer has contributed.
pub(super) struct Contributed {
    pub(super) batch: u64,
    pub(super) last: Position,
    pub(super) total: u64,
}

/// A command with a key.
#[derive(Clone)]
pub(super) enum Command {
    /// Being carried out by whoever has the token.
    Running(u64),
    /// Carried out, with this reply.
    Settled(Bytes),
}

/// A node.
pub(super) struct Known {
    pub(super) value: Bytes,
    pub(super) lease: Lease,
}

/// How a node's lease stands.
#[derive(Clone, Copy)]
pub(super) enum Lease {
    Until(Instant),
    Condemned(Sentence),
}

impl Known {
    pub(super) fn expired(&self, now: Instant) -> bool {
        match self.lease {
            Lease::Until(until) => until <= now,
            Lease::Condemned(_) => true,
        }
    }
}

/// Entries with the instants of their arrival; never empty, so that offsets go on where they were.
#[derive(Default)]
pub(super) struct History {
    pub(super) entries: VecDeque<(Instant, Entry)>,
}

impl History {
    pub(super) fn head(&self) -> Position {
        self.entries.back().map_or(Position::START, |(_, entry)| entry.position)
    }

    /// The first entry above `offset`. Offsets have no holes, so it is found by counting.
    pub(super) fn above(&self, offset: u64) -> usize {
        let oldest = self.entries.front().map_or(1, |(_, entry)| entry.position.offset);
        usize::try_from(offset.saturating_add(1).saturating_sub(oldest))
            .map_or(self.entries.len(), |i| i.min(self.entries.len()))
    }

    fn recent(&self, nonce: u64) -> Option<&Entry> {
        let recent = self.entries.iter().rev().take(DEDUP).map(|(_, entry)| entry);
        recent.into_iter().find(|entry| entry.position.nonce == nonce)
    }

    fn add(&mut self, draft: &Draft, now: Instant) -> Entry {
        if let Some(entry) = self.recent(draft.nonce) {
            return entry.clone();
        }
        let previous = self.head();
        let position = Position { offset: previous.offset + 1, nonce: draft.nonce };
        let entry = Entry { position, previous, payload: draft.payload.clone() };
        // Most histories are short.
        if self.entries.is_empty() {
            self.entries.reserve_exact(1);
        }
        self.entries.push_back((now, entry.clone()));
        entry
    }

    fn trim(&mut self, now: Instant, keep: &Keep) {
        while let Some((since, _)) = self.entries.front() {
            let count = self.entries.len() as u64;
            let surplus = count > keep.most || count > keep.events && now.duration_since(*since) >= keep.age;
            if count <= 1 || !surplus {
                break;
            }
            self.entries.pop_front();
        }
    }
}

impl Store {
    /// Adds drafts; those that were added before come again as they were.
    pub(super) fn append(&mut self, topic: &Topic, drafts: &[Draft], keep: &Keep) -> Vec<Entry> {
        let now = Instant::now();
        self.expire(2);
        self.forget_history_if_over(topic, now);
        // What its life depends on, and how long that is kept: `None` inside is for ever.
        let bearer = match topic {
            Topic::Pair(pair) => {
                self.records.get(pair).filter(|record| !record.is_over(now)).map(|record| record.until)
            }
            Topic::Talk(room) => self.groups.contains_key(&Group::Room(room.clone())).then_some(None),
            Topic::Room(_) | Topic::Node(_) | Topic::Cluster => None,
        };
        let orphan = keep.age.max(ORPHAN);
        let until = match bearer {
            None => Some(now + orphan),
            Some(until) => until.map(|until| until + orphan),
        };
        let without_record = bearer.is_none();

        let history = self.histories.entry(topic.clone()).or_insert_with(|| Box::new(Timed::new(History::default())));
        let entries = drafts.iter().map(|draft| history.value.add(draft, now)).collect();
        history.value.trim(now, keep);
        if without_record || history.until.is_none() {
            self.keep_history(topic, until);
        }
        entries
    }

    /// Whether the first of these drafts was added lately.
    pub(super) fn has(&mut self, topic: &Topic, drafts: &[Draft]) -> bool {
        self.forget_history_if_over(topic, Instant::now());
        let history = self.histories.get(topic);
        drafts.first().is_some_and(|draft| history.is_some_and(|h| h.value.recent(draft.nonce).is_some()))
    }

    pub(super) fn read(&mut self, topic: &Topic, after: Position, limit: usize) -> Page {
        self.forget_history_if_over(topic, Instant::now());
        let Some(history) = self.histories.get(topic).map(|history| &history.value) else {
            return Page { known: after == Position::START, ..Page::default() };
        };
        let from = history.above(after.offset);
        let oldest = history.entries.front().map(|(_, entry)| (entry.position, entry.previous));
        let known = match oldest {
            Some((_, before)) if after == Position::START => before == Position::START,
            _ => from > 0 && history.entries[from - 1].1.position == after,
        };
        let entries = history.entries.range(from..).take(limit).map(|(_, entry)| entry.clone()).collect();
        Page { entries, known, oldest, head: history.head() }
    }

    /// Gives up what comes before an entry, but not the newest.
    pub(super) fn trim(&mut self, topic: &Topic, before: Position) {
        if let Some(history) = self.histories.get_mut(topic) {
            let entries = &mut history.value.entries;
            let most = entries.len().saturating_sub(STAY);
            let surplus = entries.iter().take(most).take_while(|(_, entry)| entry.position.offset < before.offset);
            let surplus = surplus.count();
            entries.drain(..surplus);
        }
    }

    pub(super) fn head(&mut self, topic: &Topic) -> Position {
        self.forget_history_if_over(topic, Instant::now());
        self.histories.get(topic).map_or(Position::START, |history| history.value.head())
    }

    /// The record of a pair, unless its time is up.
    pub(super) fn record(&mut self, pair: PairId) -> Option<&mut Record> {
        let now = Instant::now();
        self.records.get_mut(&pair).filter(|record| !record.is_over(now)).map(|record| &mut record.value)
    }

    /// Sets until when a record is kept; `None` is for ever.
    pub(super) fn keep_record(&mut self, pair: PairId, until: Option<Instant>) {
        if let Some(record) = self.records.get_mut(&pair) {
            record.until = until;
            if let (Some(until), false) = (until, record.queued) {
                record.queued = true;
                self.due.push(Reverse((until, Due::Record(pair))));
            }
        }
    }

    /// Sets until when a history is kept; `None` is for ever.
    pub(super) fn keep_history(&mut self, topic: &Topic, until: Option<Instant>) {
        self.forget_history_if_over(topic, Instant::now());
        if let Some(history) = self.histories.get_mut(topic) {
            history.until = until;
            if let (Some(until), false) = (until, history.queued) {
                history.queued = true;
                self.due.push(Reverse((until, Due::History(TopicOrder(topic.clone())))));
            }
        }
    }

    /// What is known of a command with a key, unless its time is up.
    pub(super) fn command(&self, pair: PairId, key: &str) -> Option<Command> {
        let command = self.commands.get(&(pair, key.to_owned()))?;
        (!command.is_over(Instant::now())).then(|| command.value.clone())
    }

    /// Keeps what is known of a command until then.
    pub(super) fn keep_command(&mut self, key: (PairId, String), known: Command, until: Instant) {
        let command = self.commands.entry(key.clone()).or_insert_with(|| Box::new(Timed::new(known.clone())));
        command.value = known;
        command.until = Some(until);
        if !std::mem::replace(&mut command.queued, true) {
            self.due.push(Reverse((until, Due::Command(Box::new(key)))));
        }
    }

    /// What a group is.
    pub(super) fn census(&mut self, group: &Group) -> Census {
        let (rule, talk) = match group {
            Group::Room(room) => (self.rules.get(room).cloned(), self.head(&Topic::Talk(room.clone()))),
            Group::Siblings(_) => (None, Position::START),
        };
        let roll = self.groups.get(group);
        Census {
            charter: roll.map(|roll| roll.charter.clone()),
            members: roll.map_or(0, |roll| roll.count()),
            rule,
            talk,
            untold: matches!(group, Group::Room(room) if self.untold.contains_key(room)),
        }
    }

    /// Replaces the rule of a room, if the one in force is `version`. Returns the version in force then.
    pub(super) fn lay_down(
        &mut self,
        room: &RoomName,
        version: u64,
        rule: Option<Rule>,
        charter: Option<Bytes>,
    ) -> u64 {
        let is = self.rules.get(room).map_or(0, |rule| rule.version);
        let new = rule.as_ref().map_or(0, |rule| rule.version);
        if is != version || is == new {
            return is;
        }
        match rule {
            Some(rule) => drop(self.rules.insert(room.clone(), rule)),
            None => drop(self.rules.remove(room)),
        }
        if let (Some(roll), Some(charter)) = (self.groups.get_mut(&Group::Room(room.clone())), charter) {
            roll.charter = charter;
        }
        new
    }

    /// Sets until when what a writer has contributed is known.
    pub(super) fn keep_writer(&mut self, key: (TopicOrder, String), said: Contributed, until: Instant) {
        let said = match self.writers.entry(key.clone()) {
            Place::Occupied(mut known) => {
                known.get_mut().value = said;
                known.into_mut()
            }
            Place::Vacant(place) => place.insert(Box::new(Timed::new(said))),
        };
        said.until = Some(until);
        if !std::mem::replace(&mut said.queued, true) {
            self.due.push(Reverse((until, Due::Writer(Box::new(key)))));
        }
    }

    pub(super) fn forget_history_if_over(&mut self, topic: &Topic, now: Instant) {
        if self.histories.get(topic).is_some_and(|history| history.is_over(now)) {
            self.histories.remove(topic);
        }
    }

    /// Gives back the memory of at most `portion` things whose time is up. True when there may be more.
    pub(super) fn expire(&mut self, portion: usize) -> bool {
        let now = Instant::now();
        for _ in 0..portion {
            match self.due.peek() {
                Some(Reverse((until, _))) if *until <= now => {}
                _ => return false,
            }
            let Some(Reverse((_, due))) = self.due.pop() else { return false };
            let until = match &due {
                Due::Record(pair) => settle(&mut self.records, pair, now),
                Due::Command(key) => settle(&mut self.commands, key, now),
                Due::Writer(key) => settle(&mut self.writers, key, now),
                Due::History(topic) => settle(&mut self.histories, &topic.0, now),
            };
            if let Some(until) = until {
                self.due.push(Reverse((until, due)));
            }
        }
        true
    }

    pub(super) fn kept(&self) -> Kept {
        Kept { records: self.records.len(), histories: self.histories.len(), groups: self.groups.len() }
    }
}

/// Removes what is over. What got a later deadline meanwhile is to be looked at again then.
fn settle<K: std::hash::Hash + Eq, T>(map: &mut HashMap<K, Box<Timed<T>>>, key: &K, now: Instant) -> Option<Instant> {
    let timed = map.get_mut(key)?;
    if timed.is_over(now) {
        map.remove(key);
        return None;
    }
    timed.queued = timed.until.is_some();
    timed.until
}
