//! Records of pairs.

use std::time::Duration;

use tokio::task::JoinSet;

use super::{LONG, Nodes, UP, claimed, number, until};
use crate::{
    broker::{Begun, Claim, Record},
    protocol::{Fence, NodeId, PairId},
};

/// Records are made once, and vanish if nobody claims them.
pub async fn records_are_made_once(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (pair, short) = (PairId::fresh(), PairId::fresh());
    assert!(a.registry.create(pair, number(1), LONG).await.expect(UP));
    assert!(!b.registry.create(pair, number(2), LONG).await.expect(UP));
    let record = Record { facts: number(1), fence: Fence::default(), holder: None, ended: false };
    assert_eq!(b.registry.look_up(pair).await.expect(UP), Some(record));

    assert_eq!(b.registry.look_up(short).await.expect(UP), None);
    assert_eq!(b.registry.claim(short, NodeId::fresh(), 1).await.expect(UP), Claim::Missing);
    assert_eq!(b.registry.end(short, None, LONG).await.expect(UP), None);
    assert!(a.registry.create(short, number(3), Duration::from_millis(50)).await.expect(UP));
    until(async || b.registry.look_up(short).await.expect(UP).is_none(), "an unclaimed record to vanish").await;
    assert_eq!(b.registry.claim(short, NodeId::fresh(), 1).await.expect(UP), Claim::Missing);
    assert!(a.registry.create(short, number(4), LONG).await.expect(UP), "then there may be a new one");
}

/// A command with a key is begun once, by whichever node, until it is forgotten; its reply is kept.
pub async fn a_key_begins_once(nodes: &mut Nodes) {
    let pair = PairId::fresh();
    let mut begins = JoinSet::new();
    for link in nodes.iter() {
        for _ in 0..10 {
            let registry = link.registry.clone();
            begins.spawn(async move { registry.begin(pair, "a {key}", LONG).await.expect(UP) });
        }
    }
    let begun = begins.join_all().await;
    assert_eq!(begun.iter().filter(|begun| **begun == Begun::First).count(), 1, "{begun:?}");
    assert!(begun.iter().all(|begun| matches!(begun, Begun::First | Begun::Running)), "{begun:?}");

    let [a, b, _] = nodes;
    assert_eq!(b.registry.begin(pair, "another", LONG).await.expect(UP), Begun::First);
    assert_eq!(b.registry.begin(PairId::fresh(), "a {key}", LONG).await.expect(UP), Begun::First);
    a.registry.settle(pair, "a {key}", Some(number(7)), LONG).await.expect(UP);
    assert_eq!(b.registry.begin(pair, "a {key}", LONG).await.expect(UP), Begun::Settled(number(7)));
    b.registry.settle(pair, "a {key}", None, LONG).await.expect(UP);
    assert_eq!(a.registry.begin(pair, "a {key}", Duration::from_millis(50)).await.expect(UP), Begun::First);
    until(
        async || b.registry.begin(pair, "a {key}", Duration::from_millis(50)).await.expect(UP) == Begun::First,
        "a key to be forgotten after its time",
    )
    .await;
}

/// A holder can write a record again that was lost, and none that says otherwise.
pub async fn lost_records_are_restored(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (pair, one, two) = (PairId::fresh(), NodeId::fresh(), NodeId::fresh());
    let fence = Fence { epoch: 7, nonce: 70 };
    assert!(a.registry.restore(pair, one, fence, number(1)).await.expect(UP));
    let record = Record { facts: number(1), fence, holder: Some(one), ended: false };
    assert_eq!(b.registry.look_up(pair).await.expect(UP), Some(record));
    assert_eq!(b.registry.holdings(one, 10).await.expect(UP).pairs, [pair]);
    assert!(a.registry.restore(pair, one, fence, number(2)).await.expect(UP), "it is its own already");
    assert!(!b.registry.restore(pair, two, Fence { epoch: 1, nonce: 1 }, number(3)).await.expect(UP));
    let (next, before) = claimed(b, pair, two).await;
    assert_eq!((next.epoch, before.fence), (8, fence), "epochs go on");
    assert!(!a.registry.restore(pair, one, fence, number(4)).await.expect(UP), "it was taken over");
    b.registry.end(pair, None, LONG).await.expect(UP);
    assert!(!b.registry.restore(pair, two, next, number(5)).await.expect(UP), "it has ended");
}

/// Each claim gets an epoch of its own, one above the last, and the record as it was.
pub async fn claims_count_up(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (pair, one, two) = (PairId::fresh(), NodeId::fresh(), NodeId::fresh());
    a.registry.create(pair, number(1), LONG).await.expect(UP);
    let (first, before) = claimed(a, pair, one).await;
    assert_eq!((first.epoch, before.fence, before.holder), (1, Fence::default(), None));
    let (second, before) = claimed(b, pair, two).await;
    assert_eq!((second.epoch, before.fence, before.holder), (2, first, Some(one)));
    let now = a.registry.look_up(pair).await.expect(UP).expect("it is held");
    assert_eq!((now.fence, now.holder, now.ended), (second, Some(two), false));

    let mut claims = JoinSet::new();
    for link in nodes.iter() {
        for _ in 0..10 {
            let registry = link.registry.clone();
            claims.spawn(async move { registry.claim(pair, NodeId::fresh(), rand::random()).await.expect(UP) });
        }
    }
    let mut fences: Vec<(Fence, Fence)> = Vec::new();
    for claim in claims.join_all().await {
        let Claim::Won(fence, before) = claim else { panic!("not {claim:?}") };
        fences.push((before.fence, fence));
    }
    fences.sort_by_key(|(_, fence)| fence.epoch);
    let last = fences.into_iter().fold(second, |before, (was, fence)| {
        assert_eq!((was, fence.epoch), (before, before.epoch + 1), "each sees the one before it");
        fence
    });
    assert_eq!(nodes[0].registry.look_up(pair).await.expect(UP).map(|record| record.fence), Some(last));
}

/// Facts change by the last fence only, held or idle, until the end.
pub async fn facts_are_fenced(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let pair = PairId::fresh();
    let facts = async || b.registry.look_up(pair).await.expect(UP).map(|record| record.facts);
    assert!(!a.registry.revise(pair, Fence::default(), number(0)).await.expect(UP), "there is no such pair");
    a.registry.create(pair, number(1), LONG).await.expect(UP);
    let (old, _) = claimed(a, pair, NodeId::fresh()).await;
    assert!(a.registry.revise(pair, old, number(2)).await.expect(UP));
    let (new, _) = claimed(b, pair, NodeId::fresh()).await;
    assert!(!a.registry.revise(pair, old, number(3)).await.expect(UP));
    let twin = Fence { epoch: new.epoch, nonce: new.nonce ^ 1 };
    assert!(!a.registry.revise(pair, twin, number(3)).await.expect(UP));
    assert_eq!(facts().await, Some(number(2)));
    assert!(b.registry.release(pair, new, LONG, LONG).await.expect(UP));
    assert!(a.registry.revise(pair, new, number(4)).await.expect(UP), "it is idle, and still the last fence");
    assert!(a.registry.end(pair, None, LONG).await.expect(UP).is_some());
    assert!(!a.registry.revise(pair, new, number(5)).await.expect(UP));
    assert_eq!(facts().await, Some(number(4)));
}

/// Of many who release one fence, one does; a fence that was overtaken releases nothing.
pub async fn one_releaser_wins(nodes: &mut Nodes) {
    let (pair, node) = (PairId::fresh(), NodeId::fresh());
    nodes[0].registry.create(pair, number(1), LONG).await.expect(UP);
    for round in 1..=5 {
        let (old, _) = claimed(&nodes[0], pair, node).await;
        let (fence, _) = claimed(&nodes[1], pair, node).await;
        assert_eq!(fence.epoch, round * 2);
        let mut releases = JoinSet::new();
        for link in nodes.iter() {
            for fence in [old, fence, fence, fence] {
                let registry = link.registry.clone();
                releases
                    .spawn(async move { (fence == old, registry.release(pair, fence, LONG, LONG).await.expect(UP)) });
            }
        }
        let outcomes = releases.join_all().await;
        assert_eq!(outcomes.iter().filter(|(_, released)| *released).count(), 1);
        assert!(outcomes.iter().all(|(old, released)| !(*old && *released)));
        let record = nodes[2].registry.look_up(pair).await.expect(UP).expect("it is idle");
        assert_eq!((record.holder, record.fence, record.ended), (None, fence, false));
    }
    let (fence, _) = claimed(&nodes[0], pair, node).await;
    assert!(nodes[0].registry.release(pair, fence, Duration::from_millis(50), LONG).await.expect(UP));
    until(async || nodes[1].registry.look_up(pair).await.expect(UP).is_none(), "an idle record to expire").await;
}

/// Of many who end a pair, one is given its record; then nobody can claim it, and it is forgotten after a while.
pub async fn one_ender_wins(nodes: &mut Nodes) {
    let (pair, node) = (PairId::fresh(), NodeId::fresh());
    nodes[0].registry.create(pair, number(1), LONG).await.expect(UP);
    let (fence, _) = claimed(&nodes[0], pair, node).await;
    let keep = Duration::from_millis(300);
    let mut ends = JoinSet::new();
    for link in nodes.iter() {
        for _ in 0..5 {
            let registry = link.registry.clone();
            ends.spawn(async move { registry.end(pair, None, keep).await.expect(UP) });
        }
    }
    let records: Vec<Record> = ends.join_all().await.into_iter().flatten().collect();
    assert_eq!(records, [Record { facts: number(1), fence, holder: Some(node), ended: false }]);
    let [a, b, _] = nodes;
    let record = a.registry.look_up(pair).await.expect(UP).expect("late-comers learn of it");
    assert_eq!((record.ended, record.holder), (true, None));
    assert_eq!(b.registry.claim(pair, node, 1).await.expect(UP), Claim::Ended);
    assert!(!b.registry.release(pair, fence, LONG, LONG).await.expect(UP));
    assert!(!b.registry.create(pair, number(2), LONG).await.expect(UP));
    until(async || a.registry.look_up(pair).await.expect(UP).is_none(), "an ended record to vanish").await;
    assert_eq!(b.registry.claim(pair, node, 1).await.expect(UP), Claim::Missing);
}

/// An idle pair ends only if it is still idle since the fence that was seen.
pub async fn only_the_idle_end_as_idle(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (pair, node) = (PairId::fresh(), NodeId::fresh());
    a.registry.create(pair, number(1), LONG).await.expect(UP);
    let (first, _) = claimed(a, pair, node).await;
    assert_eq!(b.registry.end(pair, Some(first), LONG).await.expect(UP), None, "it is held");
    assert!(a.registry.release(pair, first, LONG, LONG).await.expect(UP));
    let (second, _) = claimed(a, pair, node).await;
    assert!(a.registry.release(pair, second, LONG, LONG).await.expect(UP));
    assert_eq!(b.registry.end(pair, Some(first), LONG).await.expect(UP), None, "it was held since");
    assert!(b.registry.end(pair, Some(second), LONG).await.expect(UP).is_some());
    assert_eq!(b.registry.end(pair, Some(second), LONG).await.expect(UP), None);

    let never = PairId::fresh();
    a.registry.create(never, number(1), LONG).await.expect(UP);
    assert!(b.registry.end(never, Some(Fence::default()), LONG).await.expect(UP).is_some());
}
