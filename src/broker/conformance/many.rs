//! Histories that many write.

use std::time::Duration;

use futures_util::future::join_all;

use super::{ALL, Nodes, UP, all_of, next_entry, number, room, subscribe_all, until};
use crate::{
    broker::{Broker, Entry, Keep, Share, Tally, Writer},
    protocol::{Position, Topic},
};

fn shares(weights: impl IntoIterator<Item = u64>) -> Vec<Share> {
    weights.into_iter().map(|weight| Share { weight, payload: number(weight) }).collect()
}

fn writer(name: &str, total: u64) -> Writer {
    Writer { name: name.into(), batch: rand::random(), total }
}

async fn add(broker: &dyn Broker, topic: &Topic, weights: impl IntoIterator<Item = u64>, keep: &Keep) -> Position {
    broker.contribute(topic, None, &shares(weights), keep).await.expect(UP)
}

/// Each entry's tally and what was contributed, from the first to the last.
fn tallies(entries: &[Entry]) -> Vec<(Tally, u64)> {
    let split = |entry: &Entry| Tally::split(entry.payload.clone()).expect("each has a tally");
    entries.iter().map(split).map(|(tally, payload)| (tally, super::as_number(&payload))).collect()
}

fn assert_tallied(entries: &[Entry], mut total: u64) {
    let told = tallies(entries);
    for ((tally, weight), pair) in told.iter().zip(entries.windows(2).map(Some).chain([None])) {
        total += weight;
        assert_eq!((tally.total, tally.era), (total, told[0].0.era));
        if let Some([one, next]) = pair {
            assert_eq!(next.previous, one.position, "an entry names its predecessor");
            assert_eq!(next.position.offset, one.position.offset + 1, "offsets have no holes");
        }
    }
}

/// Many write at once: one chain, whose tallies add up, and everyone hears it in this order.
pub async fn contributions_make_one_chain(nodes: &mut Nodes) {
    let topic = room("many");
    subscribe_all(nodes, &topic).await;
    let (writers, rounds) = (6, 20u64);
    let one = async |n: usize| {
        for round in 0..rounds {
            let writer = writer(&format!("writer {n}"), round + 1);
            let weights = [round % 3, 5, n as u64];
            let last = nodes[n % 3].broker.contribute(&topic, Some(&writer), &shares(weights), &ALL).await.expect(UP);
            assert_eq!(last.nonce, writer.batch.wrapping_add(2));
        }
    };
    join_all((0..writers).map(one)).await;
    let kept = all_of(&*nodes[0].broker, &topic).await;
    assert_eq!(kept.len() as u64, writers as u64 * rounds * 3);
    assert_eq!(kept[0].previous, Position::START);
    assert_tallied(&kept, 0);
    for link in nodes.iter_mut() {
        for entry in &kept {
            assert_eq!(next_entry(link).await, *entry, "live and kept are the same");
        }
    }
    let total = nodes[1].broker.contributed(&topic, "writer 3").await.expect(UP);
    assert_eq!(total, Some(rounds));
    assert_eq!(nodes[1].broker.contributed(&topic, "nobody").await.expect(UP), None);
}

/// A contribution whose answer was lost is made again and adds nothing, however much others have added since.
pub async fn a_contribution_is_added_once(nodes: &mut Nodes) {
    let [a, b, c] = nodes;
    let topic = room("once");
    c.broker.subscribe(&topic).await.expect(UP);
    let (ours, what) = (Writer { batch: u64::MAX, ..writer("ours", 7) }, shares([1, 2]));
    let first = a.broker.contribute(&topic, Some(&ours), &what, &ALL).await.expect(UP);
    assert_eq!(first.nonce, 0, "nonces go round");
    for _ in 0..10 {
        add(&*b.broker, &topic, 0..10, &ALL).await;
    }
    assert_eq!(a.broker.contribute(&topic, Some(&ours), &what, &ALL).await.expect(UP), first);
    let next = Writer { batch: 5, total: 8, ..ours };
    assert_ne!(a.broker.contribute(&topic, Some(&next), &what, &ALL).await.expect(UP), first);
    let kept = all_of(&*b.broker, &topic).await;
    assert_eq!(kept.len(), 2 + 100 + 2);
    assert_tallied(&kept, 0);
    for entry in &kept {
        assert_eq!(next_entry(c).await, *entry);
    }
    assert_eq!(b.broker.contributed(&topic, "ours").await.expect(UP), Some(8));
}

/// What goes, goes by weight or by age; the newest stays.
pub async fn contributions_go_by_weight_and_by_age(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (heavy, old) = (room("heavy"), room("old"));
    let keep = Keep { most: 10, ..ALL };
    for _ in 0..40 {
        add(&*a.broker, &heavy, [3, 0], &keep).await;
    }
    let kept = all_of(&*b.broker, &heavy).await;
    let told = tallies(&kept);
    let (last, first) = (told[told.len() - 1].0.total, told[0].0.total);
    assert_eq!((last, kept.len()), (120, 8), "four of weight three and what goes with them: 9 and 12 are not 10");
    assert!(last - first < 10);
    add(&*a.broker, &heavy, [99], &keep).await;
    assert_eq!(all_of(&*b.broker, &heavy).await.len(), 1);

    let keep = Keep { age: Duration::from_millis(100), ..ALL };
    add(&*a.broker, &old, [1, 1, 1], &keep).await;
    let gone = async || {
        add(&*a.broker, &old, [1], &keep).await;
        let kept = all_of(&*b.broker, &old).await;
        tallies(&kept)[0].0.total > 3
    };
    until(gone, "the first three to be too old").await;
}

/// Back from the newest, page by page.
pub async fn the_latest_come_first(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let topic = room("latest");
    assert!(b.broker.latest(&topic, None, 10).await.expect(UP).is_empty());
    add(&*a.broker, &topic, 1..=10, &ALL).await;
    let mut kept = all_of(&*b.broker, &topic).await;
    kept.reverse();
    let (mut before, mut told) = (None, Vec::new());
    loop {
        let page = b.broker.latest(&topic, before, 3).await.expect(UP);
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        before = Some(last.position);
        told.extend(page);
    }
    assert_eq!(told, kept);
}
