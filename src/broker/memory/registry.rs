//! One node's end of the medium: leased records.

use std::{collections::hash_map::Entry, ops::Bound, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    port::Port,
    roll::Roll,
    store::{Command, Known, Lease, Store, Timed},
};
use crate::{
    broker::{
        Appended, Beat, Begun, BrokerError, Census, Changes, Claim, Counted, Draft, Group, Holdings, Keep, Member,
        Peer, Record, Registry, Rule, Sentence, Step,
    },
    protocol::{Fence, NodeId, PairId, RoomName, Topic},
};

impl Store {
    fn condemn(&mut self, node: NodeId) -> Option<Sentence> {
        let fresh = Sentence(self.sentences);
        let known = self.nodes.get_mut(&node)?;
        if let Lease::Condemned(sentence) = known.lease {
            return Some(sentence);
        }
        known.lease = Lease::Condemned(fresh);
        self.sentences += 1;
        Some(fresh)
    }
}

#[async_trait]
impl Registry for Port {
    async fn create(
        &self,
        pair: PairId,
        facts: Bytes,
        keeper: NodeId,
        linger: Duration,
        keep: Duration,
    ) -> Result<bool, BrokerError> {
        let mut store = self.medium.store.lock();
        store.expire(2);
        if store.record(pair).is_some() {
            return Ok(false);
        }
        let record =
            Record { facts, fence: Fence::default(), holder: None, keeper: Some(keeper), heard: false, ended: false };
        match store.records.entry(pair) {
            Entry::Occupied(expired) => expired.into_mut().value = record,
            Entry::Vacant(place) => {
                place.insert(Box::new(Timed::new(record)));
            }
        }
        store.keep_record(pair, Some(Instant::now() + linger + keep));
        Ok(true)
    }

    async fn claim(&self, pair: PairId, node: NodeId, nonce: u64) -> Result<Claim, BrokerError> {
        let mut store = self.medium.store.lock();
        let Some(record) = store.record(pair) else { return Ok(Claim::Missing) };
        if record.ended {
            return Ok(Claim::Ended);
        }
        if let Some(holder) = record.holder {
            let mine = holder == node && record.fence.nonce == nonce;
            return Ok(if mine { Claim::Won(record.fence) } else { Claim::Held(record.clone()) });
        }
        let fence = Fence { epoch: record.fence.epoch + 1, nonce };
        (record.fence, record.holder, record.keeper, record.heard) = (fence, Some(node), None, false);
        store.keep_record(pair, None);
        store.keep_history(&Topic::Pair(pair), None);
        Ok(Claim::Won(fence))
    }

    async fn restore(
        &self,
        pair: PairId,
        node: NodeId,
        fence: Fence,
        facts: Bytes,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Step<()>, BrokerError> {
        let mut store = self.medium.store.lock();
        if let Some(before) = store.record(pair).cloned() {
            if before.ended || before.fence.epoch >= fence.epoch {
                let mine = before.fence == fence && before.holder == Some(node);
                return Ok(if mine { Step::Taken(()) } else { Step::Refused });
            }
            store.keep_record(pair, None);
        }
        let record = Record { facts, fence, holder: Some(node), keeper: None, heard: true, ended: false };
        match store.records.entry(pair) {
            Entry::Occupied(older) => older.into_mut().value = record,
            Entry::Vacant(place) => {
                place.insert(Box::new(Timed::new(record)));
            }
        }
        store.keep_history(&Topic::Pair(pair), None);
        self.add(&mut store, &pair.into(), drafts, keep);
        Ok(Step::Taken(()))
    }

    async fn revise(&self, pair: PairId, fence: Fence, facts: Bytes) -> Result<bool, BrokerError> {
        let mut store = self.medium.store.lock();
        let Some(record) = store.record(pair).filter(|record| record.fence == fence && !record.ended) else {
            return Ok(false);
        };
        record.facts = facts;
        Ok(true)
    }

    async fn release(
        &self,
        pair: PairId,
        fence: Fence,
        keeper: NodeId,
        linger: Duration,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Step<()>, BrokerError> {
        let mut store = self.medium.store.lock();
        store.expire(2);
        let topic = Topic::Pair(pair);
        let Some(before) = store.record(pair).cloned() else { return Ok(Step::Missing) };
        if before.fence != fence || before.holder.is_none() {
            // Given up already, by this very call, whose answer was lost?
            let again = before.fence == fence && before.keeper == Some(keeper);
            return Ok(if again { Step::Taken(()) } else { Step::Refused });
        }
        if let Some(record) = store.record(pair) {
            (record.holder, record.keeper) = (None, Some(keeper));
        }
        if before.heard {
            self.add(&mut store, &topic, drafts, keep);
        }
        let until = Instant::now() + linger + keep.age;
        store.keep_record(pair, Some(until));
        store.keep_history(&topic, Some(until + keep.age));
        Ok(Step::Taken(()))
    }

    async fn end(
        &self,
        pair: PairId,
        fence: Fence,
        holder: Option<NodeId>,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Step<()>, BrokerError> {
        let mut store = self.medium.store.lock();
        store.expire(2);
        let topic = Topic::Pair(pair);
        let Some(before) = store.record(pair).cloned() else { return Ok(Step::Missing) };
        if before.ended || before.fence != fence || before.holder != holder {
            let again = before.ended && store.has(&topic, drafts);
            return Ok(if again { Step::Taken(()) } else { Step::Refused });
        }
        if let Some(record) = store.record(pair) {
            (record.ended, record.holder, record.keeper) = (true, None, None);
        }
        self.add(&mut store, &topic, drafts, keep);
        let until = Instant::now() + keep.age;
        store.keep_record(pair, Some(until));
        store.keep_history(&topic, Some(until));
        Ok(Step::Taken(()))
    }

    async fn adopt(
        &self,
        pair: PairId,
        fence: Fence,
        [from, to]: [NodeId; 2],
        keep: Duration,
    ) -> Result<Option<Duration>, BrokerError> {
        let mut store = self.medium.store.lock();
        let Some(record) = store.record(pair).filter(|r| r.fence == fence && r.keeper == Some(from)) else {
            return Ok(None);
        };
        record.keeper = Some(to);
        let until = store.records.get(&pair).and_then(|record| record.until);
        Ok(until.map(|until| until.saturating_duration_since(Instant::now()).saturating_sub(keep)))
    }

    async fn tell(&self, pair: PairId, drafts: &[Draft], keep: &Keep) -> Result<Appended, BrokerError> {
        let mut store = self.medium.store.lock();
        match store.record(pair) {
            None => return Ok(Appended::Missing),
            Some(record) if record.ended => return Ok(Appended::Refused),
            Some(_) => {}
        }
        let (last, reached) = self.add(&mut store, &pair.into(), drafts, keep);
        Ok(Appended::At(last, reached))
    }

    async fn look_up(&self, pair: PairId) -> Result<Option<Record>, BrokerError> {
        let mut store = self.medium.store.lock();
        let Some(record) = store.record(pair) else { return Ok(None) };
        let Record { ref facts, fence, holder, keeper, heard, ended } = *record;
        // A copy of the bytes: once they are shared, what is kept of a pair stays larger.
        Ok(Some(Record { facts: Bytes::copy_from_slice(facts), fence, holder, keeper, heard, ended }))
    }

    async fn begin(&self, pair: PairId, key: &str, token: u64, keep: Duration) -> Result<Begun, BrokerError> {
        let mut store = self.medium.store.lock();
        store.expire(2);
        Ok(match store.command(pair, key) {
            Some(Command::Running(of)) if of == token => Begun::First,
            Some(Command::Running(_)) => Begun::Running,
            Some(Command::Settled(reply)) => Begun::Settled(reply),
            None => {
                let until = Instant::now() + keep;
                store.keep_command((pair, key.to_owned()), Command::Running(token), until);
                Begun::First
            }
        })
    }

    async fn begun(&self, pair: PairId, key: &str) -> Result<Option<Begun>, BrokerError> {
        Ok(self.medium.store.lock().command(pair, key).map(|known| match known {
            Command::Running(_) => Begun::Running,
            Command::Settled(reply) => Begun::Settled(reply),
        }))
    }

    async fn settle(
        &self,
        pair: PairId,
        key: &str,
        token: u64,
        reply: Option<Bytes>,
        keep: Duration,
    ) -> Result<(), BrokerError> {
        let mut store = self.medium.store.lock();
        let known = store.command(pair, key);
        let own = matches!(known, Some(Command::Running(of)) if of == token);
        let key = (pair, key.to_owned());
        match reply {
            Some(reply) if own || known.is_none() => {
                store.keep_command(key, Command::Settled(reply), Instant::now() + keep);
            }
            None if own => drop(store.commands.remove(&key)),
            _ => {}
        }
        Ok(())
    }

    async fn join(
        &self,
        group: &Group,
        member: Member,
        charter: Bytes,
        capacity: Option<u64>,
        told: Option<(&Counted, &Keep)>,
    ) -> Result<Option<Census>, BrokerError> {
        let mut store = self.medium.store.lock();
        let roll = store.groups.get(group);
        let is_in = roll.is_some_and(|roll| roll.get(member.id).is_some());
        let count = roll.map_or(0, |roll| roll.count());
        if !is_in && capacity.is_some_and(|capacity| count >= capacity) {
            return Ok(None);
        }
        let joined = PairId::from_uuid(member.id);
        store.groups.entry(group.clone()).or_insert_with(|| Box::new(Roll::new(charter))).add(member);
        if let Group::Room(room) = group {
            store.keep_history(&Topic::Talk(room.clone()), None);
            if !is_in {
                self.tell_count(&mut store, room, (true, joined), told);
            }
        }
        Ok(Some(store.census(group)))
    }

    async fn leave(
        &self,
        group: &Group,
        member: &Member,
        told: Option<(&Counted, &Keep)>,
    ) -> Result<Option<Census>, BrokerError> {
        let mut store = self.medium.store.lock();
        let Some(roll) = store.groups.get_mut(group) else { return Ok(None) };
        if roll.get(member.id) != Some(member) {
            return Ok(None);
        }
        roll.remove(member.id);
        if roll.is_empty() {
            store.groups.remove(group);
        }
        if let Group::Room(room) = group {
            self.tell_count(&mut store, room, (false, PairId::from_uuid(member.id)), told);
        }
        Ok(Some(store.census(group)))
    }

    async fn tell_changes(&self, room: &RoomName, told: &Changes, keep: &Keep) -> Result<u64, BrokerError> {
        Ok(self.tell_of_crowd(&mut self.medium.store.lock(), room, told, keep))
    }

    async fn lay_down(
        &self,
        room: &RoomName,
        version: u64,
        rule: Option<Rule>,
        charter: Option<Bytes>,
    ) -> Result<bool, BrokerError> {
        let wanted = rule.as_ref().map_or(0, |rule| rule.version);
        Ok(self.medium.store.lock().lay_down(room, version, rule, charter) == wanted)
    }

    async fn rules(&self, after: Option<&str>, limit: usize) -> Result<Vec<(RoomName, Rule)>, BrokerError> {
        let store = self.medium.store.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rules = store.rules.range::<str, _>((from, Bound::Unbounded)).take(limit);
        Ok(rules.map(|(room, rule)| (room.clone(), rule.clone())).collect())
    }

    async fn census(&self, group: &Group) -> Result<Census, BrokerError> {
        Ok(self.medium.store.lock().census(group))
    }

    async fn members(&self, group: &Group, after: Option<Uuid>, limit: usize) -> Result<Vec<Member>, BrokerError> {
        let store = self.medium.store.lock();
        let Some(roll) = store.groups.get(group) else { return Ok(Vec::new()) };
        Ok(roll.after(after).take(limit).cloned().collect())
    }

    async fn beat(&self, node: NodeId, value: Bytes, lease: Duration) -> Result<Beat, BrokerError> {
        let mut store = self.medium.store.lock();
        let now = Instant::now();
        let stands = match store.nodes.get(&node) {
            Some(Known { lease: Lease::Condemned(_), .. }) => return Ok(Beat::Condemned),
            Some(known) if !known.expired(now) => Beat::Kept,
            _ => Beat::Lapsed,
        };
        store.nodes.insert(node, Known { value, lease: Lease::Until(now + lease) });
        Ok(stands)
    }

    async fn nodes(&self) -> Result<Vec<Peer>, BrokerError> {
        let now = Instant::now();
        let store = self.medium.store.lock();
        let peer = |(node, known): (&NodeId, &Known)| Peer {
            node: *node,
            value: known.value.clone(),
            expired: known.expired(now),
        };
        Ok(store.nodes.iter().map(peer).collect())
    }

    async fn condemn(&self, node: NodeId) -> Result<Option<Sentence>, BrokerError> {
        let mut store = self.medium.store.lock();
        let expired = store.nodes.get(&node).is_some_and(|known| known.expired(Instant::now()));
        Ok(if expired { store.condemn(node) } else { None })
    }

    async fn resign(&self, node: NodeId) -> Result<(), BrokerError> {
        self.medium.store.lock().condemn(node);
        Ok(())
    }

    async fn holdings(&self, node: NodeId, limit: usize) -> Result<Holdings, BrokerError> {
        let store = self.medium.store.lock();
        let now = Instant::now();
        // Looked for among all: who is not alone here is in a test, and few nodes die there.
        let records = || store.records.iter().filter(|(_, record)| !record.is_over(now));
        let held = records().filter(|(_, record)| record.value.holder == Some(node));
        let kept = records().filter(|(_, record)| record.value.keeper == Some(node));
        let members =
            store.groups.iter().flat_map(|(group, roll)| roll.after(None).map(move |member| (group, member)));
        let members = members.filter(|(_, member)| member.node == node);
        Ok(Holdings {
            pairs: held.map(|(pair, record)| (*pair, record.value.fence.nonce)).take(limit).collect(),
            kept: kept.map(|(pair, _)| *pair).take(limit).collect(),
            members: members.map(|(group, member)| (group.clone(), member.clone())).take(limit).collect(),
        })
    }

    async fn bury(&self, node: NodeId, sentence: Sentence) -> Result<(), BrokerError> {
        let mut store = self.medium.store.lock();
        let lease = store.nodes.get(&node).map(|known| known.lease);
        if matches!(lease, Some(Lease::Condemned(under)) if under == sentence) {
            store.nodes.remove(&node);
        }
        Ok(())
    }
}
