//! Histories.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{
    ALL, LONG, Nodes, UP, all_of, append, append_one, as_number, assert_chain, claimed, created, draft, next_entry,
    number, released, subscribe_all, under, until,
};
use crate::{
    broker::{Appended, DRAFTS, Draft, Keep, Link, Under},
    protocol::{Fence, NodeId, PairId, Position, Topic},
};

/// What is delivered live is what a read gives: same position, same predecessor, same payload.
pub async fn live_and_kept_are_the_same(nodes: &mut Nodes) {
    for topic in [Topic::Pair(PairId::fresh()), Topic::Cluster] {
        subscribe_all(nodes, &topic).await;
        // Others may have used the cluster's.
        let before = all_of(&*nodes[0].broker, &topic).await.len();
        let mut positions = Vec::new();
        for n in 0..50 {
            positions.push(append(&nodes[0], &topic, number(n), &ALL).await);
        }
        for link in &mut *nodes {
            let kept = all_of(&*link.broker, &topic).await;
            assert_chain(Position::START, &kept);
            assert_eq!(kept[before..].iter().map(|entry| entry.position).collect::<Vec<_>>(), positions);
            for entry in &kept[before..] {
                assert_eq!(next_entry(link).await, *entry);
            }
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
                    append_one(&*broker, &topic, draft(payload), &ALL).await.expect(UP);
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
    let add = async |link: &Link, nonce, n| {
        append_one(&*link.broker, &topic, Draft { nonce, payload: number(n) }, &ALL).await.expect(UP)
    };
    for nonce in [0, 1, u64::MAX, 1 << 53, (1 << 53) + 1] {
        let first = add(a, nonce, 1).await;
        assert_eq!(first.nonce, nonce);
        let entry = next_entry(c).await;
        assert_eq!(add(b, nonce, 2).await, first);
        assert_eq!(next_entry(c).await, entry, "what was kept is delivered, not what came later");
        // Not even when others have appended since, with nonces that look alike.
        for i in 1..20 {
            append(a, &topic, number(3), &ALL).await;
            let like = nonce ^ (i << 16);
            if i < 4 && ![0, 1, u64::MAX, 1 << 53, (1 << 53) + 1].contains(&like) {
                add(b, like, 4).await;
                next_entry(c).await;
            }
            next_entry(c).await;
        }
        assert_eq!(add(b, nonce, 5).await, first);
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

    // Whoever reads on gets the same, and nothing where the history is not the one that was read before.
    for at in 0..10 {
        let page = b.broker.read(&topic, positions[at], 3).await.expect(UP);
        let on = b.broker.read_on(&topic, positions[at], positions[1], 3).await.expect(UP);
        assert_eq!(on, Some(page.entries), "{at}");
    }
    assert_eq!(b.broker.read_on(&topic, positions[10], positions[1], 3).await.expect(UP), None);
    let stranger = Position { offset: 7, nonce: positions[7].nonce.wrapping_add(1) };
    assert_eq!(b.broker.read_on(&topic, stranger, positions[1], 3).await.expect(UP), None);

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
    // Who has seen an oldest entry that has gone since gets nothing, or what is right.
    let on = b.broker.read_on(&topic, before, first, 100).await.expect(UP);
    assert!(on.is_none_or(|entries| entries.first().is_some_and(|next| next.previous == before)));

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
    let (pair, node, short) = (PairId::fresh(), NodeId::fresh(), Duration::from_millis(50));
    let topic = Topic::Pair(pair);
    assert!(a.registry.create(pair, number(0), node, short, short).await.expect(UP));
    append(a, &topic, number(1), &ALL).await;
    let fence = claimed(a, pair, node).await;
    b.broker.append(&topic, Some(under(fence)), &[draft(number(2))], &ALL).await.expect(UP);
    sleep(Duration::from_millis(150)).await;
    assert!(b.registry.look_up(pair).await.expect(UP).is_some(), "claimed pairs do not expire");
    let keep = Keep { age: Duration::from_millis(300), ..ALL };
    let last = [draft(number(3))];
    a.registry.release(pair, fence, node, Duration::ZERO, &last, &keep).await.expect(UP);
    until(async || b.registry.look_up(pair).await.expect(UP).is_none(), "the record to expire").await;
    assert_eq!(all_of(&*b.broker, &topic).await.len(), 3);
    until(async || all_of(&*b.broker, &topic).await.is_empty(), "the history to expire").await;
    assert_eq!(a.broker.heads(std::slice::from_ref(&topic)).await.expect(UP), [Position::START]);
    // A new story begins at the beginning.
    assert_eq!(append(a, &topic, number(1), &ALL).await.offset, 1);
}

/// Under a fence, only who holds the pair appends; many drafts are one step, and a retry adds what was not added.
pub async fn appending_is_fenced(nodes: &mut Nodes) {
    let [a, b, c] = nodes;
    let node = NodeId::fresh();
    let pair = created(a, node).await;
    let topic = Topic::Pair(pair);
    c.broker.subscribe(&topic).await.expect(UP);
    let drafts: Vec<_> = (0..DRAFTS as u64).map(|n| draft(number(n))).collect();
    let append = async |topic: &Topic, fence, drafts: &[Draft]| {
        b.broker.append(topic, Some(under(fence)), drafts, &ALL).await.expect(UP)
    };
    let none = Topic::Pair(PairId::fresh());
    assert_eq!(append(&none, Fence::default(), &drafts).await, Appended::Missing);
    assert_eq!(append(&topic, Fence::default(), &drafts).await, Appended::Refused, "nobody holds it");
    let old = claimed(a, pair, node).await;
    assert!(matches!(append(&topic, old, &drafts[..3]).await, Appended::At(at, _) if at.offset == 3));
    assert!(matches!(append(&topic, old, &drafts).await, Appended::At(at, _) if at.offset == DRAFTS as u64));
    assert!(matches!(append(&topic, old, &drafts).await, Appended::At(at, _) if at.offset == DRAFTS as u64));
    let twin = Fence { epoch: old.epoch, nonce: old.nonce ^ 1 };
    assert_eq!(append(&topic, twin, &drafts[..1]).await, Appended::Refused);
    assert!(released(a, pair, old, node).await);
    assert_eq!(append(&topic, old, &[draft(number(99))]).await, Appended::Refused, "it was given up");
    let new = claimed(a, pair, node).await;
    assert_eq!(append(&topic, old, &[draft(number(99))]).await, Appended::Refused, "it was taken over");
    a.registry.end(pair, new, Some(node), &[], &ALL).await.expect(UP);
    assert_eq!(append(&topic, new, &[draft(number(99))]).await, Appended::Refused, "it has ended");

    let kept = all_of(&*a.broker, &topic).await;
    assert_chain(Position::START, &kept);
    assert_eq!(kept.iter().map(|entry| as_number(&entry.payload)).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    let again = |n: usize| kept[..n].iter();
    for entry in again(3).chain(again(16)).chain(again(16)) {
        assert_eq!(next_entry(c).await, *entry, "what was there is delivered again");
    }
}

/// A writer that names the last entry it knows of learns when the history has lost it, and then nothing is added.
pub async fn a_lost_tail_is_told_to_its_writer(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let node = NodeId::fresh();
    let pair = created(a, node).await;
    let topic = Topic::Pair(pair);
    let fence = claimed(a, pair, node).await;
    let append = async |after, drafts: &[Draft]| {
        b.broker.append(&topic, Some(Under { fence, after }), drafts, &ALL).await.expect(UP)
    };
    let at = |appended| if let Appended::At(position, _) = appended { position } else { panic!("not {appended:?}") };
    assert_eq!(append(None, &[]).await, Appended::At(Position::START, 0), "a look");
    let first = at(append(None, &[draft(number(1))]).await);
    let second = at(append(Some(first), &[draft(number(2))]).await);
    assert_eq!(append(Some(second), &[]).await, Appended::At(second, 0));
    assert_eq!(append(Some(first), &[]).await, Appended::At(second, 0), "another may have appended since");
    // What was there once and is not, has another nonce or is beyond the end.
    let twin = Position { nonce: second.nonce ^ 1, ..second };
    let beyond = Position { offset: 9, nonce: 9 };
    for lost in [twin, beyond] {
        for drafts in [&[][..], &[draft(number(3))]] {
            assert_eq!(append(Some(lost), drafts).await, Appended::Behind(second));
        }
    }
    assert_eq!(all_of(&*a.broker, &topic).await.len(), 2, "nothing was added");
    // A record of a lower epoch is an older one: its holder's writes were lost.
    let newer = Under { fence: Fence { epoch: fence.epoch + 1, nonce: 1 }, after: None };
    assert_eq!(b.broker.append(&topic, Some(newer), &[], &ALL).await.expect(UP), Appended::Missing);
}
