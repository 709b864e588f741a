//! Whether live traffic flows, over all lanes, in the words that the node hears: `Down` when the first lane is lost,
//! `Lost` when the last one is back. What arrives through other lanes meanwhile is passed on.

use std::collections::HashMap;

use tokio::sync::{Mutex, mpsc};

use super::board::LaneId;
use crate::broker::Delivery;

pub(super) struct Standing {
    deliveries: mpsc::WeakSender<Delivery>,
    /// Which lanes there are, and whether each is lost. Held while the node is told, so that it hears one order.
    lanes: Mutex<HashMap<LaneId, bool>>,
}

impl Standing {
    pub(super) fn new(deliveries: mpsc::WeakSender<Delivery>) -> Self {
        Self { deliveries, lanes: Mutex::default() }
    }

    pub(super) async fn add(&self, lane: LaneId) {
        self.lanes.lock().await.insert(lane, false);
    }

    /// A lane is taken away before it had anything.
    pub(super) async fn forget(&self, lane: LaneId) {
        self.lanes.lock().await.remove(&lane);
    }

    /// A lane is lost. One that was taken away has nothing to say any more.
    pub(super) async fn down(&self, lane: LaneId) {
        let mut lanes = self.lanes.lock().await;
        let before = lanes.values().any(|down| *down);
        let Some(down) = lanes.get_mut(&lane) else { return };
        *down = true;
        if !before {
            self.say(Delivery::Down).await;
        }
    }

    /// All that a lane is listened to for is in force, and something may have been lost before.
    pub(super) async fn back(&self, lane: LaneId) {
        let mut lanes = self.lanes.lock().await;
        if let Some(down) = lanes.get_mut(&lane) {
            *down = false;
            self.say_lost(&lanes).await;
        }
    }

    /// Slots have moved, and with them all that their lanes were listened to for; `gone` have none left.
    pub(super) async fn moved(&self, gone: &[LaneId]) {
        let mut lanes = self.lanes.lock().await;
        lanes.retain(|lane, _| !gone.contains(lane));
        self.say_lost(&lanes).await;
    }

    /// Not while any lane is lost: then it will be said when the last is back, and is true only then.
    async fn say_lost(&self, lanes: &HashMap<LaneId, bool>) {
        if !lanes.values().any(|down| *down) {
            self.say(Delivery::Lost).await;
        }
    }

    async fn say(&self, delivery: Delivery) {
        if let Some(deliveries) = self.deliveries.upgrade() {
            // It fails only when nobody takes deliveries any more.
            drop(deliveries.send(delivery).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn down_comes_first_and_lost_when_all_are_back() {
        let (sender, mut heard) = mpsc::channel(16);
        let standing = Standing::new(sender.downgrade());
        for lane in 1..=3 {
            standing.add(lane).await;
        }
        standing.down(1).await;
        standing.down(2).await;
        standing.down(1).await;
        assert!(matches!(heard.try_recv(), Ok(Delivery::Down)));
        standing.back(1).await;
        standing.moved(&[]).await;
        assert!(heard.try_recv().is_err(), "lane 2 is lost still");
        standing.moved(&[2]).await;
        assert!(matches!(heard.try_recv(), Ok(Delivery::Lost)));
        standing.down(2).await;
        assert!(heard.try_recv().is_err(), "it was taken away");
        standing.moved(&[]).await;
        assert!(matches!(heard.try_recv(), Ok(Delivery::Lost)));
    }
}
