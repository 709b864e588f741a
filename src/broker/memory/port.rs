//! One node's end of the medium: live traffic and histories.

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Medium, outlet::Outlet};
use crate::{
    broker::{Broker, BrokerError, Delivery, Keep, Page},
    protocol::{Position, Topic},
};

pub(super) struct Port {
    pub(super) medium: Arc<Medium>,
    number: u64,
    outlet: Arc<Outlet>,
    /// What to take back when the node goes.
    topics: Mutex<HashSet<Topic>>,
}

impl Port {
    pub(super) fn new(medium: Arc<Medium>, number: u64, outlet: Outlet) -> Self {
        Self { medium, number, outlet: Arc::new(outlet), topics: Mutex::default() }
    }

    fn detach(&self, topic: &Topic) {
        let mut listeners = self.medium.listeners.write();
        if let Some(outlets) = listeners.get_mut(topic) {
            outlets.remove(&self.number);
            if outlets.is_empty() {
                listeners.remove(topic);
            }
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        for topic in self.topics.get_mut().drain().collect::<Vec<_>>() {
            self.detach(&topic);
        }
    }
}

#[async_trait]
impl Broker for Port {
    fn publish(&self, topic: &Topic, payload: Bytes) -> Result<(), BrokerError> {
        self.medium.fan_out(topic, || Delivery::Message(topic.clone(), payload.clone()));
        Ok(())
    }

    async fn subscribe(&self, topic: &Topic) -> Result<(), BrokerError> {
        // Held to the end, so that a subscription racing its own end leaves both books saying the same.
        let mut topics = self.topics.lock();
        if !self.outlet.is_closed() && topics.insert(topic.clone()) {
            let mut listeners = self.medium.listeners.write();
            listeners.entry(topic.clone()).or_default().insert(self.number, self.outlet.clone());
        }
        Ok(())
    }

    async fn unsubscribe(&self, topic: &Topic) -> Result<(), BrokerError> {
        let mut topics = self.topics.lock();
        if topics.remove(topic) {
            self.detach(topic);
        }
        Ok(())
    }

    async fn append(&self, topic: &Topic, nonce: u64, payload: Bytes, keep: &Keep) -> Result<Position, BrokerError> {
        // Delivered before the lock is given back: two appenders' entries arrive in the order in which they stand.
        let mut store = self.medium.store.lock();
        let entry = store.append(topic, nonce, payload, keep);
        self.medium.fan_out(topic, || Delivery::Entry(topic.clone(), entry.clone()));
        Ok(entry.position)
    }

    async fn read(&self, topic: &Topic, after: Position, limit: usize) -> Result<Page, BrokerError> {
        Ok(self.medium.store.lock().read(topic, after, limit))
    }

    async fn heads(&self, topics: &[Topic]) -> Result<Vec<Position>, BrokerError> {
        let mut store = self.medium.store.lock();
        Ok(topics.iter().map(|topic| store.head(topic)).collect())
    }
}
