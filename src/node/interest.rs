//! Interest: the broker hears of the first listener to a topic on this node, and of the last.

use std::{collections::HashMap, hash::BuildHasher as _, sync::Arc};

use tokio::sync::Mutex;

use crate::{
    broker::{Broker, BrokerError},
    protocol::Topic,
};

/// Topics that hash alike wait for each other's round trips; this many groups keep that rare.
const GROUPS: usize = 256;

/// How many listeners each topic has. Changes of one topic are made one after the other, so that a subscription and
/// its end can't overtake each other.
pub(super) struct Interest {
    broker: Arc<dyn Broker>,
    hasher: std::hash::RandomState,
    groups: Vec<Mutex<HashMap<Topic, usize>>>,
}

impl Interest {
    pub(super) fn new(broker: Arc<dyn Broker>) -> Self {
        let groups = (0..GROUPS).map(|_| Mutex::default()).collect();
        Self { broker, hasher: std::hash::RandomState::new(), groups }
    }

    fn group(&self, topic: &Topic) -> &Mutex<HashMap<Topic, usize>> {
        &self.groups[self.hasher.hash_one(topic) as usize % GROUPS]
    }

    /// Adds a listener; when this returns, what is published from now on arrives.
    pub(super) async fn add(&self, topic: &Topic) -> Result<(), BrokerError> {
        let mut counts = self.group(topic).lock().await;
        if let Some(count) = counts.get_mut(topic) {
            *count += 1;
            return Ok(());
        }
        self.broker.subscribe(topic).await?;
        counts.insert(topic.clone(), 1);
        Ok(())
    }

    /// Removes a listener.
    pub(super) async fn remove(&self, topic: &Topic) {
        let mut counts = self.group(topic).lock().await;
        let Some(count) = counts.get_mut(topic) else { return };
        *count -= 1;
        if *count == 0 {
            counts.remove(topic);
            // A subscription that could not be ended costs traffic that nobody reads; the next listener finds it.
            if let Err(error) = self.broker.unsubscribe(topic).await {
                tracing::debug!(?topic, error = &error as &dyn std::error::Error, "not unsubscribed");
            }
        }
    }
}
