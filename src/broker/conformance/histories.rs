//! Histories.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{ALL, LONG, Nodes, UP, all_of, append, assert_chain, next_entry, number, subscribe_all, until};
use crate::{
    broker::{Claim, Keep},
    protocol::{NodeId, PairId, Position, Topic},
};

/// What is delivered live is what a read gives: same position, same predecessor, same payload.
pub async fn live_and_kept_are_the_same(nodes: &mut Nodes) {
    let topic = Topic::Pair(PairId::fresh());
    subscribe_all(nodes, &topic).await;
    let mut positions = Vec::new();
    for n in 0..50 {
        positions.push(append(&nodes[0], &topic, number(n), &ALL).await);
    }
    for link in nodes {
        let kept = all_of(&*link.broker, &topic).await;
        assert_chain(Position::START, &kept);
        assert_eq!(kept.iter().map(|entry| entry.position).collect::<Vec<_>>(), positions);
        for entry in kept {
            assert_eq!(next_entry(link).await, entry);
        }
    }
}

/// Appenders on several nodes make one chain without holes, and everybody sees it in the same order.
pub async fn concurrent_appenders_make_one_chain(nodes: &mut Nodes) {
    let topic = Topic::Pair(PairId::fresh());
    subscribe_all(nodes, &topic).await;
    let mut appenders = JoinSet::new();
    for (i, link) in (0u64..).zip(nodes.iter()) {
        for j in 0..4 {
            let (broker, topic) = (link.broker.clone(), topic.clone());
            appenders.spawn(async move {
                for n in 0..50 {
                    let payload = number(i * 1_000 + j * 100 + n);
                    broker.append(&topic, rand::random(), payload, &ALL).await.expect(UP);
                }
            });
        }
    }
    appenders.join_all().await;
    let kept = all_of(&*nodes[0].broker, &topic).await;
    assert_eq!(kept.len(), 600);
    assert_chain(Position::START, &kept);
    for link in nodes {
        for entry in &kept {
            assert_eq!(next_entry(link).await, *entry);
        }
    }
}

/// Appending again with the same nonce adds nothing, gives the first position, and delivers it again.
pub async fn a_nonce_is_added_once(nodes: &mut Nodes) {
    let [a, b, c] = nodes;
    let topic = Topic::Pair(PairId::fresh());
    c.broker.subscribe(&topic).await.expect(UP);
    for nonce in [0, 1, u64::MAX, 1 << 53, (1 << 53) + 1] {
        let first = a.broker.append(&topic, nonce, number(1), &ALL).await.expect(UP);
        assert_eq!(first.nonce, nonce);
        let entry = next_entry(c).await;
        assert_eq!(b.broker.append(&topic, nonce, number(2), &ALL).await.expect(UP), first);
        assert_eq!(next_entry(c).await, entry, "what was kept is delivered, not what came later");
        // Not even when others have appended since, with nonces that look alike.
        for i in 1..20 {
            append(a, &topic, number(3), &ALL).await;
            let like = nonce ^ (i << 16);
            if i < 4 && ![0, 1, u64::MAX, 1 << 53, (1 << 53) + 1].contains(&like) {
                b.broker.append(&topic, like, number(4), &ALL).await.expect(UP);
                next_entry(c).await;
            }
            next_entry(c).await;
        }
        assert_eq!(b.broker.append(&topic, nonce, number(5), &ALL).await.expect(UP), first);
        assert_eq!(next_entry(c).await, entry);
    }
    let kept = all_of(&*a.broker, &topic).await;
    assert_chain(Position::START, &kept);
    assert_eq!(kept.len(), 5 * (1 + 19 + 3));
}

/// Pages: how many, from where, whether the place is known, what is oldest and newest.
pub async fn pages_tell_where_they_stand(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let topic = Topic::Pair(PairId::fresh());
    let empty = b.broker.read(&topic, Position::START, 10).await.expect(UP);
    assert!(empty.known && empty.entries.is_empty() && empty.oldest.is_none() && empty.head == Position::START);
    let foreign = Position { offset: 3, nonce: 3 };
    assert!(!b.broker.read(&topic, foreign, 10).await.expect(UP).known);

    let mut positions = vec![Position::START];
    for n in 1..=10 {
        positions.push(append(a, &topic, number(n), &ALL).await);
    }
    let page = b.broker.read(&topic, Position::START, 4).await.expect(UP);
    assert!(page.known);
    assert_eq!((page.oldest, page.head), (Some((positions[1], Position::START)), positions[10]));
    assert_eq!(page.entries.iter().map(|entry| entry.position).collect::<Vec<_>>(), positions[1..5]);

    let page = b.broker.read(&topic, positions[7], 100).await.expect(UP);
    assert!(page.known);
    assert_eq!(page.entries.iter().map(|entry| entry.position).collect::<Vec<_>>(), positions[8..]);
    let page = b.broker.read(&topic, positions[10], 100).await.expect(UP);
    assert!(page.known && page.entries.is_empty());
    let page = b.broker.read(&topic, positions[2], 0).await.expect(UP);
    assert!(page.known && page.entries.is_empty() && page.head == positions[10]);

    // An offset that was given away twice, a place in the future, the end of the numbers: not known, and the entries
    // above the offset are given all the same.
    let twin = Position { offset: 7, nonce: positions[7].nonce.wrapping_add(1) };
    let page = b.broker.read(&topic, twin, 100).await.expect(UP);
    assert!(!page.known);
    assert_eq!(page.entries.first().map(|entry| entry.position), Some(positions[8]));
    for offset in [11, 1 << 60, u64::MAX - 1, u64::MAX] {
        let page = b.broker.read(&topic, Position { offset, nonce: 5 }, 100).await.expect(UP);
        assert!(!page.known && page.entries.is_empty() && page.head == positions[10], "{offset}");
    }
    let page = b.broker.read(&topic, Position { offset: 0, nonce: 5 }, 100).await.expect(UP);
    assert!(!page.known && page.entries.len() == 10);
}

/// Old entries go exactly as [`Keep`] says; numbers go on, and the last entry stays.
pub async fn histories_are_trimmed(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let offsets = async |topic: &Topic| {
        let kept = all_of(&*b.broker, topic).await;
        kept.into_iter().map(|entry| entry.position.offset).collect::<Vec<_>>()
    };
    // Beyond the count, and no age protects them.
    let topic = Topic::Pair(PairId::fresh());
    let first = append(a, &topic, number(0), &ALL).await;
    let keep = Keep { events: 5, age: Duration::ZERO, most: 100 };
    for n in 2..=12 {
        append(a, &topic, number(n), &keep).await;
        assert_eq!(offsets(&topic).await, (n.saturating_sub(4).max(1)..=n).collect::<Vec<_>>());
    }
    let page = b.broker.read(&topic, Position::START, 100).await.expect(UP);
    assert!(!page.known, "the start was trimmed off");
    assert_eq!(page.oldest.map(|(oldest, before)| (oldest.offset, before.offset)), Some((8, 7)));
    assert!(!b.broker.read(&topic, first, 1).await.expect(UP).known);
    // What the predecessor of the oldest names is not kept: reading from there is a gap, if nothing was missed.
    let before = page.oldest.expect("twelve were appended").1;
    assert_eq!(b.broker.read(&topic, before, 100).await.expect(UP).entries.len(), 5);

    // Young ones stay, up to the cap.
    let topic = Topic::Pair(PairId::fresh());
    let keep = Keep { events: 2, age: LONG, most: 20 };
    for n in 1..=30 {
        append(a, &topic, number(n), &keep).await;
        assert_eq!(offsets(&topic).await, (n.saturating_sub(19).max(1)..=n).collect::<Vec<_>>());
    }

    // Until they are old.
    let topic = Topic::Pair(PairId::fresh());
    let keep = Keep { events: 2, age: Duration::from_millis(150), most: 100 };
    for n in 1..=6 {
        append(a, &topic, number(n), &ALL).await;
    }
    sleep(Duration::from_millis(200)).await;
    append(a, &topic, number(7), &keep).await;
    append(a, &topic, number(8), &keep).await;
    append(a, &topic, number(9), &keep).await;
    assert_eq!(offsets(&topic).await, [7, 8, 9], "the young stay beyond the count");

    // Many at once may take a few appends, and the last one always stays.
    let topic = Topic::Pair(PairId::fresh());
    for n in 1..=300 {
        append(a, &topic, number(n), &ALL).await;
    }
    let nothing = Keep { events: 0, age: Duration::ZERO, most: 0 };
    for n in 301..=306 {
        append(a, &topic, number(n), &nothing).await;
    }
    assert_eq!(offsets(&topic).await, [306]);
    assert_eq!(append(a, &topic, number(0), &nothing).await.offset, 307);
}

/// The newest position of many histories at once.
pub async fn heads_of_many(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    assert_eq!(b.broker.heads(&[]).await.expect(UP), []);
    let topics: Vec<Topic> = (0..300).map(|_| Topic::Pair(PairId::fresh())).collect();
    let mut heads = Vec::new();
    for (i, topic) in topics.iter().enumerate() {
        let mut head = Position::START;
        for n in 0..i % 3 {
            head = append(a, topic, number(n as u64), &ALL).await;
        }
        heads.push(head);
    }
    assert_eq!(b.broker.heads(&topics).await.expect(UP), heads);
}

/// A history goes with its record, but later; a claimed pair keeps both.
pub async fn histories_outlive_their_record(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (pair, node) = (PairId::fresh(), NodeId::fresh());
    let topic = Topic::Pair(pair);
    assert!(a.registry.create(pair, number(0), Duration::from_millis(100)).await.expect(UP));
    append(a, &topic, number(1), &ALL).await;
    let Claim::Won(fence, _) = a.registry.claim(pair, node, 1).await.expect(UP) else { panic!("not claimed") };
    sleep(Duration::from_millis(150)).await;
    assert!(b.registry.look_up(pair).await.expect(UP).is_some(), "claimed pairs do not expire");
    let (ttl, keep) = (Duration::from_millis(100), Duration::from_millis(400));
    assert!(a.registry.release(pair, fence, ttl, keep).await.expect(UP));
    append(a, &topic, number(2), &ALL).await;
    until(async || b.registry.look_up(pair).await.expect(UP).is_none(), "the record to expire").await;
    assert_eq!(all_of(&*b.broker, &topic).await.len(), 2);
    until(async || all_of(&*b.broker, &topic).await.is_empty(), "the history to expire").await;
    assert_eq!(a.broker.heads(std::slice::from_ref(&topic)).await.expect(UP), [Position::START]);
    // A new story begins at the beginning.
    assert_eq!(append(a, &topic, number(1), &ALL).await.offset, 1);
}
