//! Records of pairs.

use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{
    ALL, LONG, Nodes, UP, all_of, claimed, created, draft, next_entry, number, released, subscribe_all, under, until,
};
use crate::{
    broker::{Begun, Claim, Draft, Keep, Record, Step},
    protocol::{Fence, NodeId, PairId, Topic},
};

const SHORT: Duration = Duration::from_millis(50);

/// Records are made once, and vanish if nobody claims them.
pub async fn records_are_made_once(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (node, short) = (NodeId::fresh(), PairId::fresh());
    let pair = created(a, node).await;
    assert!(!b.registry.create(pair, number(2), NodeId::fresh(), LONG, LONG).await.expect(UP));
    let record = Record {
        facts: number(1),
        fence: Fence::default(),
        holder: None,
        keeper: Some(node),
        heard: false,
        ended: false,
    };
    assert_eq!(b.registry.look_up(pair).await.expect(UP), Some(record));

    assert_eq!(b.registry.look_up(short).await.expect(UP), None);
    assert_eq!(b.registry.claim(short, node, 1).await.expect(UP), Claim::Missing);
    assert_eq!(b.registry.end(short, Fence::default(), None, &[], &ALL).await.expect(UP), Step::Missing);
    assert!(a.registry.create(short, number(3), node, SHORT, SHORT).await.expect(UP));
    until(async || b.registry.look_up(short).await.expect(UP).is_none(), "an unclaimed record to vanish").await;
    assert_eq!(b.registry.claim(short, node, 1).await.expect(UP), Claim::Missing);
    assert!(a.registry.create(short, number(4), node, LONG, LONG).await.expect(UP), "then there may be a new one");
}

/// A command with a key is begun once, by whichever node, until it is forgotten; its reply is kept.
pub async fn a_key_begins_once(nodes: &mut Nodes) {
    let pair = PairId::fresh();
    let mut begins = JoinSet::new();
    for link in nodes.iter() {
        for _ in 0..10 {
            let registry = link.registry.clone();
            begins.spawn(async move {
                let token = rand::random();
                (token, registry.begin(pair, "a {key}", token, LONG).await.expect(UP))
            });
        }
    }
    let begun = begins.join_all().await;
    let first: Vec<_> = begun.iter().filter(|(_, begun)| *begun == Begun::First).collect();
    assert_eq!(first.len(), 1, "{begun:?}");
    assert!(begun.iter().all(|(_, begun)| matches!(begun, Begun::First | Begun::Running)), "{begun:?}");

    let [a, b, _] = nodes;
    let (token, another) = (first[0].0, first[0].0 ^ 1);
    let begin = async |token, keep| b.registry.begin(pair, "a {key}", token, keep).await.expect(UP);
    let noted = async || a.registry.begun(pair, "a {key}").await.expect(UP);
    let settle = async |token, reply| a.registry.settle(pair, "a {key}", token, reply, LONG).await.expect(UP);
    assert_eq!(begin(token, LONG).await, Begun::First, "it asks again, since the answer may have been lost");
    assert_eq!(noted().await, Some(Begun::Running));
    assert_eq!(b.registry.begin(pair, "another", 1, LONG).await.expect(UP), Begun::First);
    assert_eq!(b.registry.begin(PairId::fresh(), "a {key}", 1, LONG).await.expect(UP), Begun::First);
    for reply in [None, Some(number(1))] {
        settle(another, reply).await;
        assert_eq!(noted().await, Some(Begun::Running), "it is not its own to settle");
    }
    settle(token, Some(number(7))).await;
    for token in [token, another] {
        assert_eq!(begin(token, LONG).await, Begun::Settled(number(7)));
        settle(token, None).await;
        settle(token, Some(Bytes::new())).await;
    }
    assert_eq!(noted().await, Some(Begun::Settled(number(7))), "what is settled stays");

    assert_eq!(b.registry.begin(pair, "forgotten", 1, LONG).await.expect(UP), Begun::First);
    b.registry.settle(pair, "forgotten", 1, None, LONG).await.expect(UP);
    assert_eq!(a.registry.begun(pair, "forgotten").await.expect(UP), None);
    assert_eq!(a.registry.begin(pair, "forgotten", 2, SHORT).await.expect(UP), Begun::First);
    until(
        async || b.registry.begin(pair, "forgotten", 3, LONG).await.expect(UP) == Begun::First,
        "a key to be forgotten after its time",
    )
    .await;
}

/// A holder can write a record again that was lost, and none that says otherwise; what tells of the loss is told once.
pub async fn lost_records_are_restored(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (pair, one, two) = (PairId::fresh(), NodeId::fresh(), NodeId::fresh());
    let (fence, drafts) = (Fence { epoch: 7, nonce: 70 }, [draft(number(9))]);
    let restore = async |node, fence, facts| {
        a.registry.restore(pair, node, fence, number(facts), &drafts, &ALL).await.expect(UP)
    };
    assert_eq!(restore(one, fence, 1).await, Step::Taken(()));
    let record = Record { facts: number(1), fence, holder: Some(one), keeper: None, heard: true, ended: false };
    assert_eq!(b.registry.look_up(pair).await.expect(UP), Some(record));
    assert_eq!(b.registry.holdings(one, 10).await.expect(UP).pairs, [(pair, 70)]);
    assert_eq!(restore(one, fence, 2).await, Step::Taken(()), "it is its own already");
    assert_eq!(restore(two, Fence { epoch: 1, nonce: 1 }, 3).await, Step::Refused);
    assert_eq!(all_of(&*b.broker, &pair.into()).await.len(), 1, "told once");
    let later = Fence { epoch: 8, nonce: 80 };
    assert_eq!(restore(two, later, 2).await, Step::Taken(()), "what the broker has is older");
    assert_eq!(
        b.registry.look_up(pair).await.expect(UP).map(|record| (record.fence, record.holder)),
        Some((later, Some(two)))
    );
    assert_eq!(restore(one, fence, 2).await, Step::Refused);
    let fence = later;
    let one = two;
    let two = NodeId::fresh();
    assert!(released(b, pair, fence, one).await);
    let next = claimed(b, pair, two).await;
    assert_eq!(next.epoch, 9, "epochs go on");
    assert_eq!(restore(one, fence, 4).await, Step::Refused, "it was taken over");
    b.registry.end(pair, next, Some(two), &[], &ALL).await.expect(UP);
    assert_eq!(restore(two, next, 5).await, Step::Refused, "it has ended");
    assert_eq!(all_of(&*b.broker, &pair.into()).await.len(), 1);
}

/// A claim wins when nobody holds the pair, with an epoch one above the last; else it tells who does.
pub async fn claims_count_up(nodes: &mut Nodes) {
    let (one, two) = (NodeId::fresh(), NodeId::fresh());
    let pair = created(&nodes[0], one).await;
    let mut before = 0;
    for round in 0..5 {
        let mut claims = JoinSet::new();
        for link in nodes.iter() {
            for _ in 0..10 {
                let registry = link.registry.clone();
                claims.spawn(async move { registry.claim(pair, one, rand::random()).await.expect(UP) });
            }
        }
        let (won, rest): (Vec<_>, Vec<_>) =
            claims.join_all().await.into_iter().partition(|claim| matches!(claim, Claim::Won(_)));
        let [Claim::Won(fence)] = won[..] else { panic!("round {round}: not {won:?}") };
        assert_eq!(fence.epoch, before + 1);
        before = fence.epoch;
        let held = Record { facts: number(1), fence, holder: Some(one), keeper: None, heard: false, ended: false };
        assert!(rest.iter().all(|claim| *claim == Claim::Held(held.clone())), "round {round}: {rest:?}");
        let claim = async |node, nonce| nodes[1].registry.claim(pair, node, nonce).await.expect(UP);
        assert_eq!(
            claim(one, fence.nonce).await,
            Claim::Won(fence),
            "asked again, since the answer may have been lost"
        );
        assert_eq!(claim(two, fence.nonce).await, Claim::Held(held));
        assert!(released(&nodes[2], pair, fence, two).await);
    }
}

/// Facts change by the last fence only, held or idle, until the end.
pub async fn facts_are_fenced(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (node, none) = (NodeId::fresh(), PairId::fresh());
    assert!(!a.registry.revise(none, Fence::default(), number(0)).await.expect(UP), "there is no such pair");
    let pair = created(a, node).await;
    let facts = async || b.registry.look_up(pair).await.expect(UP).map(|record| record.facts);
    let old = claimed(a, pair, node).await;
    assert!(a.registry.revise(pair, old, number(2)).await.expect(UP));
    assert!(released(a, pair, old, node).await);
    let new = claimed(b, pair, NodeId::fresh()).await;
    assert!(!a.registry.revise(pair, old, number(3)).await.expect(UP));
    let twin = Fence { epoch: new.epoch, nonce: new.nonce ^ 1 };
    assert!(!a.registry.revise(pair, twin, number(3)).await.expect(UP));
    assert_eq!(facts().await, Some(number(2)));
    assert!(released(b, pair, new, node).await);
    assert!(a.registry.revise(pair, new, number(4)).await.expect(UP), "it is idle, and still the last fence");
    assert_eq!(a.registry.end(pair, new, None, &[], &ALL).await.expect(UP), Step::Taken(()));
    assert!(!a.registry.revise(pair, new, number(5)).await.expect(UP));
    assert_eq!(facts().await, Some(number(4)));
}

/// Of many who release one fence, one does, and what it says of that is told in the same step; asked again by the same,
/// the answer is the same. A fence that was overtaken releases nothing and tells nothing.
pub async fn one_releaser_wins(nodes: &mut Nodes) {
    let node = NodeId::fresh();
    let pair = created(&nodes[0], node).await;
    let topic = Topic::Pair(pair);
    subscribe_all(nodes, &topic).await;
    let (mut old, mut told) = (Fence::default(), 0);
    for round in 1..=5 {
        let fence = claimed(&nodes[0], pair, node).await;
        assert_eq!(fence.epoch, round);
        // In odd rounds it was heard of, and its end is told; in even ones it is not.
        let heard = usize::try_from(round % 2).expect("0 or 1");
        for link in nodes.iter_mut().take(3 * heard) {
            let opened = Draft { nonce: round, payload: number(round) };
            link.broker.append(&topic, Some(under(fence)), &[opened], &ALL).await.expect(UP);
        }
        let mut releases = JoinSet::new();
        for (n, link) in (0..).zip(nodes.iter()) {
            for (m, of) in (0..).zip([old, fence, fence]) {
                let (registry, keeper, payload) =
                    (link.registry.clone(), NodeId::fresh(), number(round * 100 + n * 10 + m));
                releases.spawn(async move {
                    let drafts = [draft(payload)];
                    let step = registry.release(pair, of, keeper, LONG, &drafts, &ALL).await.expect(UP);
                    (step, of, keeper, drafts)
                });
            }
        }
        let (won, rest): (Vec<_>, Vec<_>) =
            releases.join_all().await.into_iter().partition(|(step, ..)| *step == Step::Taken(()));
        let [(_, of, keeper, drafts)] = &won[..] else { panic!("round {round}: not {won:?}") };
        assert_eq!(*of, fence);
        assert!(rest.iter().all(|(step, ..)| *step == Step::Refused));
        let again = nodes[1].registry.release(pair, fence, *keeper, LONG, drafts, &ALL).await.expect(UP);
        assert_eq!(again, Step::Taken(()), "its answer may have been lost");
        let record = nodes[2].registry.look_up(pair).await.expect(UP).expect("it is idle");
        assert_eq!((record.holder, record.keeper, record.fence), (None, Some(*keeper), fence));
        let last = all_of(&*nodes[0].broker, &topic).await.split_off(told);
        let nonces: Vec<_> = last.iter().map(|entry| entry.position.nonce).collect();
        told += last.len();
        assert_eq!(nonces, [round, drafts[0].nonce][..2 * heard], "told once, if it was heard of");
        if heard == 1 {
            for link in nodes.iter_mut() {
                while next_entry(link).await.payload != drafts[0].payload {}
            }
        }
        old = fence;
    }
    let fence = claimed(&nodes[0], pair, node).await;
    let keep = Keep { age: SHORT, ..ALL };
    nodes[0].registry.release(pair, fence, node, SHORT, &[], &keep).await.expect(UP);
    until(async || nodes[1].registry.look_up(pair).await.expect(UP).is_none(), "an idle record to expire").await;
    let missing = nodes[0].registry.release(pair, fence, node, LONG, &[draft(number(0))], &ALL).await.expect(UP);
    assert_eq!(missing, Step::Missing);
}

/// Of many who end a pair, one does, and what it says of that is told in the same step; then nobody can claim it, and it
/// is forgotten after a while.
pub async fn one_ender_wins(nodes: &mut Nodes) {
    let node = NodeId::fresh();
    let pair = created(&nodes[0], node).await;
    let fence = claimed(&nodes[0], pair, node).await;
    let keep = Keep { age: Duration::from_millis(300), ..ALL };
    let mut ends = JoinSet::new();
    for link in nodes.iter() {
        for _ in 0..5 {
            let registry = link.registry.clone();
            ends.spawn(async move {
                let drafts = [draft(number(1)), draft(number(2))];
                (registry.end(pair, fence, Some(node), &drafts, &keep).await.expect(UP), drafts)
            });
        }
    }
    let (won, rest): (Vec<_>, Vec<_>) =
        ends.join_all().await.into_iter().partition(|(step, _)| *step == Step::Taken(()));
    assert_eq!(won.len(), 1);
    assert!(rest.iter().all(|(step, _)| *step == Step::Refused));
    let [a, b, _] = nodes;
    let told: Vec<_> = all_of(&*b.broker, &pair.into()).await.iter().map(|entry| entry.position.nonce).collect();
    assert_eq!(told, won[0].1.iter().map(|draft| draft.nonce).collect::<Vec<_>>());
    let again = b.registry.end(pair, fence, Some(node), &won[0].1, &keep).await.expect(UP);
    assert_eq!(again, Step::Taken(()), "its answer may have been lost");
    let record = a.registry.look_up(pair).await.expect(UP).expect("late-comers learn of it");
    assert_eq!((record.ended, record.holder, record.keeper), (true, None, None));
    assert_eq!(b.registry.claim(pair, node, 1).await.expect(UP), Claim::Ended);
    assert!(!released(b, pair, fence, node).await);
    assert!(!b.registry.create(pair, number(2), node, LONG, LONG).await.expect(UP));
    until(async || a.registry.look_up(pair).await.expect(UP).is_none(), "an ended record to vanish").await;
    assert_eq!(b.registry.claim(pair, node, 1).await.expect(UP), Claim::Missing);
}

/// A pair is ended by who holds it, or when nobody does, and under its last fence.
pub async fn only_who_holds_it_ends_it(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let node = NodeId::fresh();
    let pair = created(a, node).await;
    let end = async |pair, fence, holder| {
        let drafts: [Draft; 1] = [draft(number(0))];
        b.registry.end(pair, fence, holder, &drafts, &ALL).await.expect(UP)
    };
    let first = claimed(a, pair, node).await;
    assert_eq!(end(pair, first, None).await, Step::Refused, "it is held");
    assert_eq!(end(pair, first, Some(NodeId::fresh())).await, Step::Refused, "by another");
    assert!(released(a, pair, first, node).await);
    assert_eq!(end(pair, first, Some(node)).await, Step::Refused, "it is idle");
    let second = claimed(a, pair, node).await;
    assert!(released(a, pair, second, node).await);
    assert_eq!(end(pair, first, None).await, Step::Refused, "it was held since");
    assert_eq!(all_of(&*a.broker, &pair.into()).await, [], "what is refused is not told");
    assert_eq!(end(pair, second, None).await, Step::Taken(()));
    assert_eq!(end(pair, second, None).await, Step::Refused);

    let never = created(a, node).await;
    assert_eq!(end(never, Fence::default(), None).await, Step::Taken(()));
}

/// A pair that waits has one keeper, which another can take the place of, with the time that is left.
pub async fn keepers_follow(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let [one, two, three] = [(); 3].map(|()| NodeId::fresh());
    let kept = async |node| b.registry.holdings(node, 10).await.expect(UP).kept;
    let pair = PairId::fresh();
    let linger = Duration::from_secs(100);
    a.registry.create(pair, number(0), one, linger, LONG).await.expect(UP);
    assert_eq!((kept(one).await, kept(two).await), (vec![pair], vec![]));
    let start = Fence::default();
    let adopt = async |fence, from, to| b.registry.adopt(pair, fence, [from, to], LONG).await.expect(UP);
    assert_eq!(adopt(start, two, three).await, None, "it is another's");
    let left = adopt(start, one, two).await.expect("it waits");
    assert!((80..=100).contains(&left.as_secs()), "{left:?}");
    assert_eq!(adopt(start, one, three).await, None, "one takes it");
    assert_eq!((kept(one).await, kept(two).await), (vec![], vec![pair]));
    let fence = claimed(a, pair, one).await;
    assert_eq!(kept(two).await, [], "it does not wait any more");
    assert_eq!(adopt(start, two, three).await, None);
    assert!(released(a, pair, fence, three).await);
    assert_eq!(adopt(start, three, one).await, None, "it waits since another fence");
    assert_eq!(kept(three).await, [pair]);
    b.registry.end(pair, fence, None, &[], &ALL).await.expect(UP);
    assert_eq!(kept(three).await, []);
    assert_eq!(adopt(fence, three, one).await, None, "it has ended");
}
