//! One node's end of the medium: live traffic and histories.

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Listener, Medium, outlet::Outlet, store::Store};
use crate::{
    broker::{Appended, Broker, BrokerError, Delivery, Draft, Entry, Keep, Page, Share, Under, Writer},
    protocol::{Position, Topic},
};

pub(super) struct Port {
    pub(super) medium: Arc<Medium>,
    number: u64,
}

impl Port {
    pub(super) fn new(medium: Arc<Medium>, number: u64, outlet: Outlet) -> Self {
        let listener = Listener { outlet, topics: HashSet::new() };
        medium.listeners.write().insert(number, listener);
        Self { medium, number }
    }

    /// Appends, and delivers before the lock is given back: two appenders' entries arrive in the order in which they
    /// stand. The last one's position, and how many nodes it is on its way to.
    pub(super) fn add(&self, store: &mut Store, topic: &Topic, drafts: &[Draft], keep: &Keep) -> (Position, u64) {
        let mut last = (Position::START, 0);
        for entry in store.append(topic, drafts, keep) {
            let reached = self.medium.fan_out(topic, || Delivery::Entry(topic.clone(), entry.clone()));
            last = (entry.position, reached);
        }
        last
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.medium.listeners.write().remove(&self.number);
    }
}

#[async_trait]
impl Broker for Port {
    fn publish_behind(&self, topic: &Topic, head: &[u8], body: Bytes) -> Result<(), BrokerError> {
        let payload = if head.is_empty() { body } else { [head, &body].concat().into() };
        self.medium.fan_out(topic, || Delivery::Message(topic.clone(), payload.clone()));
        Ok(())
    }

    fn has_others(&self) -> bool {
        self.medium.listeners.read().len() > 1
    }

    async fn subscribe(&self, topic: &Topic) -> Result<(), BrokerError> {
        if let Some(listener) = self.medium.listeners.write().get_mut(&self.number)
            && !listener.outlet.is_closed()
        {
            listener.topics.insert(topic.clone());
        }
        Ok(())
    }

    async fn unsubscribe(&self, topic: &Topic) -> Result<(), BrokerError> {
        if let Some(listener) = self.medium.listeners.write().get_mut(&self.number) {
            listener.topics.remove(topic);
        }
        Ok(())
    }

    async fn append(
        &self,
        topic: &Topic,
        under: Option<Under>,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Appended, BrokerError> {
        let mut store = self.medium.store.lock();
        let head = store.head(topic);
        if let (Some(Under { fence, after }), Topic::Pair(pair)) = (under, topic) {
            match store.record(*pair) {
                None => return Ok(Appended::Missing),
                Some(record) if record.fence.epoch < fence.epoch && !record.ended => return Ok(Appended::Missing),
                Some(record) if record.fence != fence || record.holder.is_none() => return Ok(Appended::Refused),
                Some(_) if after.is_some_and(|after| head != after && head.offset <= after.offset) => {
                    return Ok(Appended::Behind(head));
                }
                Some(record) => record.heard |= !drafts.is_empty(),
            }
        }
        if drafts.is_empty() {
            return Ok(Appended::At(head, 0));
        }
        let (last, reached) = self.add(&mut store, topic, drafts, keep);
        Ok(Appended::At(last, reached))
    }

    async fn contribute(
        &self,
        topic: &Topic,
        writer: Option<&Writer>,
        shares: &[Share],
        keep: &Keep,
    ) -> Result<Position, BrokerError> {
        let mut store = self.medium.store.lock();
        let (last, added) = store.contribute(topic, writer, shares, keep);
        for entry in added {
            self.medium.fan_out(topic, || Delivery::Entry(topic.clone(), entry.clone()));
        }
        Ok(last)
    }

    async fn contributed(&self, topic: &Topic, writer: &str) -> Result<Option<u64>, BrokerError> {
        Ok(self.medium.store.lock().contributed(topic, writer))
    }

    async fn latest(&self, topic: &Topic, before: Option<Position>, limit: usize) -> Result<Vec<Entry>, BrokerError> {
        Ok(self.medium.store.lock().latest(topic, before, limit))
    }

    async fn read(&self, topic: &Topic, after: Position, limit: usize) -> Result<Page, BrokerError> {
        Ok(self.medium.store.lock().read(topic, after, limit))
    }

    async fn read_on(
        &self,
        topic: &Topic,
        after: Position,
        _oldest: Position,
        limit: usize,
    ) -> Result<Option<Vec<Entry>>, BrokerError> {
        let Page { entries, .. } = self.medium.store.lock().read(topic, after, limit);
        let follows = entries.first().is_some_and(|first| first.previous == after);
        Ok(follows.then_some(entries))
    }

    async fn trim(&self, topic: &Topic, before: Position) -> Result<(), BrokerError> {
        self.medium.store.lock().trim(topic, before);
        Ok(())
    }

    async fn heads(&self, topics: &[Topic]) -> Result<Vec<Position>, BrokerError> {
        let mut store = self.medium.store.lock();
        Ok(topics.iter().map(|topic| store.head(topic)).collect())
    }
}
