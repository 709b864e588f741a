//! The embedded back end: everything in this process' memory.
//!
//! It serves one node alone, and many nodes in one test process: [`Memory`] is the medium they share, and each takes
//! its own [`Link`] from it. What is kept sits behind one lock ([`store::Store`]), so that every step of the contract
//! is atomic by itself; who listens sits behind another. The order is always store first, then listeners, and
//! neither is ever held across an await, so no call here waits for anything.

mod crowd;
mod many;
mod outlet;
mod port;
mod registry;
mod roll;
mod store;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    outlet::Outlet,
    port::Port,
    store::{Kept, Store},
};
use super::{Delivery, Link};
use crate::protocol::{NodeId, Topic};

/// How many deliveries wait for a node that is slow to take them: a second of a busy node's traffic. Beyond it they
/// are thrown away and the node is told [`Delivery::Lost`].
const DELIVERIES: usize = 65_536;

/// How often records and histories whose time is up are looked for, when no call stumbles over them earlier.
const SWEEP: Duration = Duration::from_secs(1);

/// The shared medium. Clones are the same medium.
#[derive(Clone, Default)]
pub struct Memory {
    medium: Arc<Medium>,
}

#[derive(Default)]
struct Medium {
    store: Mutex<Store>,
    listeners: RwLock<Listeners>,
    links: AtomicU64,
}

/// Who listens, by the numbers of the links, not the nodes': a node may come back before its past is dropped.
type Listeners = HashMap<u64, Listener>;

/// A link's way out, and what it listens to. There is one link in a process, or few, so that each is asked.
struct Listener {
    outlet: Outlet,
    topics: HashSet<Topic>,
}

impl Memory {
    /// An empty medium.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One node's ports, and the deliveries that come out. Dropping both ports detaches it.
    #[must_use]
    pub fn link(&self, node: NodeId) -> Link {
        self.link_with_room_for(node, DELIVERIES)
    }

    /// As [`Memory::link`], with room for `deliveries` of them (at least 2) before any is thrown away.
    #[must_use]
    pub fn link_with_room_for(&self, node: NodeId, deliveries: usize) -> Link {
        let (sender, receiver) = mpsc::channel(deliveries.max(2));
        let number = self.medium.links.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%node, number, "joined the embedded broker");
        let port = Arc::new(Port::new(self.medium.clone(), number, Outlet::new(sender)));
        Link { broker: port.clone(), registry: port, deliveries: receiver }
    }

    /// Starts the one task of this back end, the sweeper, which gives back the memory of what has expired even when
    /// no call comes by. It ends when `stop` is cancelled. The contract holds without it.
    pub fn sweep(&self, tasks: &TaskTracker, stop: &CancellationToken) {
        let (medium, stop) = (self.medium.clone(), stop.clone());
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(SWEEP);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                // The lock is given back between the portions, so that nobody waits for a big clean-up.
                while medium.store.lock().expire(256) {
                    tokio::task::yield_now().await;
                }
            }
        });
    }

    /// How much is kept: records, histories, groups. For tests and gauges.
    #[must_use]
    pub fn kept(&self) -> Kept {
        self.medium.store.lock().kept()
    }
}

impl Medium {
    /// Gives a delivery to every listener of `topic`; how many there are.
    fn fan_out(&self, topic: &Topic, delivery: impl Fn() -> Delivery) -> u64 {
        let listeners = self.listeners.read();
        let reached = listeners.values().filter(|listener| listener.topics.contains(topic));
        reached.inspect(|listener| listener.outlet.push(&delivery)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        broker::{
            Appended, Claim, Draft, Group, Keep, Member, Step, Under,
            conformance::{next, until},
        },
        protocol::{PairId, Position},
    };

    fn room() -> Topic {
        Topic::Room("hall".parse().unwrap())
    }

    /// A node that does not listen holds nobody up, and learns once that it missed something; then all is well again.
    #[tokio::test]
    async fn overflow_is_told() {
        let memory = Memory::new();
        let (a, mut b) = (memory.link(NodeId::fresh()), memory.link_with_room_for(NodeId::fresh(), 10));
        b.broker.subscribe(&room()).await.unwrap();
        for round in 0..3u8 {
            for n in 0..30 {
                a.broker.publish(&room(), Bytes::from(vec![round, n])).unwrap();
            }
            for expected in 0..9u8 {
                assert!(
                    matches!(next(&mut b).await, Delivery::Message(_, payload) if payload[..] == [round, expected])
                );
            }
            assert!(matches!(next(&mut b).await, Delivery::Lost));
            assert!(b.deliveries.try_recv().is_err(), "what was lost is lost");
        }
        // Half emptied, it takes deliveries again, behind the news of the loss.
        for n in 0..30 {
            a.broker.publish(&room(), Bytes::from(vec![9, n])).unwrap();
        }
        for _ in 0..5 {
            next(&mut b).await;
        }
        a.broker.publish(&room(), Bytes::from_static(b"x")).unwrap();
        for _ in 0..4 {
            next(&mut b).await;
        }
        assert!(matches!(next(&mut b).await, Delivery::Lost));
        assert!(matches!(next(&mut b).await, Delivery::Message(_, payload) if payload == "x"));
    }

    #[tokio::test]
    async fn nodes_that_go_are_detached() {
        let memory = Memory::new();
        let (a, b, c) = (memory.link(NodeId::fresh()), memory.link(NodeId::fresh()), memory.link(NodeId::fresh()));
        for link in [&a, &b, &c] {
            link.broker.subscribe(&room()).await.unwrap();
        }
        let listeners = || memory.medium.fan_out(&room(), || Delivery::Lost);
        assert_eq!((listeners(), a.broker.has_others()), (3, true));
        drop(b);
        assert_eq!((listeners(), a.broker.has_others()), (2, true));
        drop(c.deliveries);
        a.broker.publish(&room(), Bytes::new()).unwrap();
        a.broker.unsubscribe(&room()).await.unwrap();
        drop((c.broker, c.registry));
        assert_eq!((listeners(), a.broker.has_others()), (0, false), "who is still there listens to nothing");
    }

    /// What has expired is swept although nobody asks for it, and what has gone leaves nothing behind.
    #[tokio::test]
    async fn memory_returns() {
        let memory = Memory::new();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        memory.sweep(&tasks, &stop);
        let link = memory.link(NodeId::fresh());
        let (node, short) = (NodeId::fresh(), Duration::from_millis(20));
        let keep = Keep { events: 9, age: short, most: 9 };
        for n in 0..1_000 {
            let pair = PairId::fresh();
            link.registry.create(pair, Bytes::new(), node, short, short * 100).await.unwrap();
            let Claim::Won(fence) = link.registry.claim(pair, node, n).await.unwrap() else { panic!("not claimed") };
            let draft = Draft { nonce: n, payload: Bytes::new() };
            let appended =
                link.broker.append(&pair.into(), Some(Under { fence, after: None }), &[draft], &keep).await.unwrap();
            assert_eq!(appended, Appended::At(Position { offset: 1, nonce: n }, 0));
            let group = Group::Siblings(pair);
            let [member, other] = [(); 2].map(|()| Member { id: PairId::fresh().uuid(), node, value: Bytes::new() });
            assert_eq!(link.registry.join(&group, member.clone(), Bytes::new(), Some(0), None).await.unwrap(), None);
            assert!(link.registry.join(&group, member.clone(), Bytes::new(), Some(1), None).await.unwrap().is_some());
            assert_eq!(link.registry.join(&group, other, Bytes::new(), Some(1), None).await.unwrap(), None);
            assert!(link.registry.leave(&group, &member, None).await.unwrap().is_some());
            assert_eq!(link.registry.release(pair, fence, node, short, &[], &keep).await.unwrap(), Step::Taken(()));
        }
        let nothing = Kept { records: 0, histories: 0, groups: 0 };
        until(async || memory.kept() == nothing, "all of it to be swept").await;
        let held = link.registry.holdings(node, 1).await.unwrap();
        assert!(held.pairs.is_empty() && held.kept.is_empty() && held.members.is_empty());
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
