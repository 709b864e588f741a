//! One node's end of the medium: leased records.

use std::{
    collections::{BTreeMap, hash_map::Entry},
    ops::Bound,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    port::Port,
    store::{Roll, Store, Timed},
};
use crate::{
    broker::{Begun, BrokerError, Census, Claim, Group, Holdings, Member, Peer, Record, Registry},
    protocol::{Fence, NodeId, PairId, Topic},
};

impl Store {
    fn pair_leaves(&mut self, pair: PairId, holder: Option<NodeId>) {
        if let Some(held) = holder.and_then(|node| self.holdings.get_mut(&node)) {
            held.pairs.remove(&pair);
        }
    }

    fn member_leaves(&mut self, group: &Group, id: &str, node: NodeId) {
        if let Some(held) = self.holdings.get_mut(&node) {
            held.members.remove(&(group.clone(), id.to_owned()));
        }
    }
}

#[async_trait]
impl Registry for Port {
    async fn create(&self, pair: PairId, facts: Bytes, ttl: Duration) -> Result<bool, BrokerError> {
        let mut store = self.medium.store.lock();
        store.expire(2);
        if store.record(pair).is_some() {
            return Ok(false);
        }
        let record = Record { facts, fence: Fence::default(), holder: None, ended: false };
        match store.records.entry(pair) {
            Entry::Occupied(expired) => expired.into_mut().value = record,
            Entry::Vacant(place) => {
                place.insert(Timed::new(record));
            }
        }
        store.keep_record(pair, Some(Instant::now() + ttl));
        Ok(true)
    }

    async fn restore(&self, pair: PairId, node: NodeId, fence: Fence, facts: Bytes) -> Result<bool, BrokerError> {
        let mut store = self.medium.store.lock();
        if let Some(record) = store.record(pair) {
            return Ok(record.fence == fence && record.holder == Some(node));
        }
        store.records.insert(pair, Timed::new(Record { facts, fence, holder: Some(node), ended: false }));
        store.holdings.entry(node).or_default().pairs.insert(pair);
        store.keep_history(&Topic::Pair(pair), None);
        Ok(true)
    }

    async fn claim(&self, pair: PairId, node: NodeId, nonce: u64) -> Result<Claim, BrokerError> {
        let mut store = self.medium.store.lock();
        let Some(record) = store.record(pair) else { return Ok(Claim::Missing) };
        if record.ended {
            return Ok(Claim::Ended);
        }
        let before = record.clone();
        let fence = Fence { epoch: before.fence.epoch + 1, nonce };
        record.fence = fence;
        record.holder = Some(node);
        store.pair_leaves(pair, before.holder);
        store.holdings.entry(node).or_default().pairs.insert(pair);
        store.keep_record(pair, None);
        store.keep_history(&Topic::Pair(pair), None);
        Ok(Claim::Won(fence, before))
    }

    async fn revise(&self, pair: PairId, fence: Fence, facts: Bytes) -> Result<bool, BrokerError> {
        let mut store = self.medium.store.lock();
        let Some(record) = store.record(pair).filter(|record| record.fence == fence && !record.ended) else {
            return Ok(false);
        };
        record.facts = facts;
        Ok(true)
    }

    async fn release(&self, pair: PairId, fence: Fence, ttl: Duration, keep: Duration) -> Result<bool, BrokerError> {
        let mut store = self.medium.store.lock();
        store.expire(2);
        let Some(record) = store.record(pair).filter(|record| record.fence == fence) else { return Ok(false) };
        let Some(holder) = record.holder.take() else { return Ok(false) };
        store.pair_leaves(pair, Some(holder));
        let until = Instant::now() + ttl;
        store.keep_record(pair, Some(until));
        store.keep_history(&Topic::Pair(pair), Some(until + keep));
        Ok(true)
    }

    async fn end(
        &self,
        pair: PairId,
        idle_since: Option<Fence>,
        keep: Duration,
    ) -> Result<Option<Record>, BrokerError> {
        let mut store = self.medium.store.lock();
        store.expire(2);
        let Some(record) = store.record(pair).filter(|record| !record.ended) else { return Ok(None) };
        if idle_since.is_some_and(|fence| record.holder.is_some() || record.fence != fence) {
            return Ok(None);
        }
        let before = record.clone();
        record.ended = true;
        record.holder = None;
        store.pair_leaves(pair, before.holder);
        let until = Instant::now() + keep;
        store.keep_record(pair, Some(until));
        store.keep_history(&Topic::Pair(pair), Some(until));
        Ok(Some(before))
    }

    async fn look_up(&self, pair: PairId) -> Result<Option<Record>, BrokerError> {
        Ok(self.medium.store.lock().record(pair).cloned())
    }

    async fn begin(&self, pair: PairId, key: &str, keep: Duration) -> Result<Begun, BrokerError> {
        let mut store = self.medium.store.lock();
        store.expire(2);
        let (key, now) = ((pair, key.to_owned()), Instant::now());
        match store.commands.get(&key).filter(|command| !command.is_over(now)) {
            Some(command) if command.value.is_empty() => Ok(Begun::Running),
            Some(command) => Ok(Begun::Settled(command.value.clone())),
            None => {
                store.keep_command(key, Bytes::new(), now + keep);
                Ok(Begun::First)
            }
        }
    }

    async fn settle(&self, pair: PairId, key: &str, reply: Option<Bytes>, keep: Duration) -> Result<(), BrokerError> {
        let mut store = self.medium.store.lock();
        let key = (pair, key.to_owned());
        match reply {
            Some(reply) => store.keep_command(key, reply, Instant::now() + keep),
            None => drop(store.commands.remove(&key)),
        }
        Ok(())
    }

    async fn join(&self, group: &Group, member: Member, charter: Bytes) -> Result<Bytes, BrokerError> {
        let mut store = self.medium.store.lock();
        let Member { id, node, value } = member;
        let roll = store.groups.entry(group.clone()).or_insert_with(|| Roll { charter, members: BTreeMap::new() });
        let charter = roll.charter.clone();
        if let Some((before, _)) = roll.members.insert(id.clone(), (node, value)) {
            store.member_leaves(group, &id, before);
        }
        store.holdings.entry(node).or_default().members.insert((group.clone(), id));
        Ok(charter)
    }

    async fn leave(&self, group: &Group, id: &str, node: NodeId) -> Result<bool, BrokerError> {
        let mut store = self.medium.store.lock();
        let Some(roll) = store.groups.get_mut(group) else { return Ok(false) };
        if roll.members.get(id).is_none_or(|(on, _)| *on != node) {
            return Ok(false);
        }
        roll.members.remove(id);
        if roll.members.is_empty() {
            store.groups.remove(group);
        }
        store.member_leaves(group, id, node);
        Ok(true)
    }

    async fn census(&self, group: &Group) -> Result<Census, BrokerError> {
        let store = self.medium.store.lock();
        Ok(store.groups.get(group).map_or_else(Census::default, |roll| Census {
            charter: Some(roll.charter.clone()),
            members: roll.members.len() as u64,
        }))
    }

    async fn members(&self, group: &Group, after: Option<&str>, limit: usize) -> Result<Vec<Member>, BrokerError> {
        let store = self.medium.store.lock();
        let Some(roll) = store.groups.get(group) else { return Ok(Vec::new()) };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let members = roll.members.range::<str, _>((from, Bound::Unbounded)).take(limit);
        Ok(members.map(|(id, (node, value))| Member { id: id.clone(), node: *node, value: value.clone() }).collect())
    }

    async fn beat(&self, node: NodeId, value: Bytes, lease: Duration) -> Result<bool, BrokerError> {
        let mut store = self.medium.store.lock();
        let now = Instant::now();
        Ok(store.nodes.insert(node, (value, now + lease)).is_some_and(|(_, until)| until > now))
    }

    async fn nodes(&self) -> Result<Vec<Peer>, BrokerError> {
        let now = Instant::now();
        let store = self.medium.store.lock();
        let peer = |(node, (value, until)): (&NodeId, &(Bytes, Instant))| Peer {
            node: *node,
            value: value.clone(),
            expired: *until <= now,
        };
        Ok(store.nodes.iter().map(peer).collect())
    }

    async fn holdings(&self, node: NodeId, limit: usize) -> Result<Holdings, BrokerError> {
        let store = self.medium.store.lock();
        Ok(store.holdings.get(&node).map_or_else(Holdings::default, |held| Holdings {
            pairs: held.pairs.iter().take(limit).copied().collect(),
            members: held.members.iter().take(limit).cloned().collect(),
        }))
    }

    async fn bury(&self, node: NodeId) -> Result<(), BrokerError> {
        let mut store = self.medium.store.lock();
        store.nodes.remove(&node);
        store.holdings.remove(&node);
        Ok(())
    }
}
