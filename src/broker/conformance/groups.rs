//! Groups and nodes.

use std::time::Duration;

use tokio::task::JoinSet;
use uuid::Uuid;

use super::{ALL, LONG, Nodes, UP, claimed, created, join, number, released, until};
use crate::{
    broker::{Beat, Census, Claim, Group, Member, Sentence},
    protocol::{NodeId, PairId},
};

/// One with a name of at most 16 letters, or a pair's: the ids of such names are in their order.
pub(super) fn member(name: &str, node: NodeId, value: u64) -> Member {
    let named = || {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Uuid::from_bytes(bytes)
    };
    let id = name.parse::<PairId>().map_or_else(|_| named(), PairId::uuid);
    Member { id, node, value: number(value) }
}

/// The first member lays down the charter, which goes with the last; members are listed in the order of their ids.
pub async fn groups_have_members_in_order(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (one, two) = (NodeId::fresh(), NodeId::fresh());
    let pair = PairId::fresh();
    let rooms = ["hall", "hall/annex"].map(|name| Group::Room(name.parse().expect("well-formed")));
    for group in rooms.into_iter().chain([Group::Siblings(pair)]) {
        assert_eq!(b.registry.census(&group).await.expect(UP), Census::default());
        let mut ids: Vec<String> = (0..25).map(|_| PairId::fresh().to_string()).collect();
        for (i, id) in ids.iter().enumerate().rev() {
            let census = join(a, &group, member(id, one, i as u64), number(i as u64)).await;
            assert_eq!(census.charter, Some(number(24)), "the first one's");
            assert_eq!(census.members, 25 - i as u64);
        }
        let census = b.registry.census(&group).await.expect(UP);
        assert_eq!(census, Census { charter: Some(number(24)), members: 25, ..Census::default() });

        ids.sort();
        let mut listed = Vec::new();
        loop {
            let after = listed.last().map(|member: &Member| member.id);
            let page = b.registry.members(&group, after, 10).await.expect(UP);
            assert!(page.len() <= 10);
            if page.is_empty() {
                break;
            }
            listed.extend(page);
        }
        let names: Vec<_> = listed.iter().map(|member| PairId::from_uuid(member.id).to_string()).collect();
        assert_eq!(names, ids);
        assert!(listed.iter().all(|member| member.node == one));
        assert_eq!(b.registry.members(&group, None, 0).await.expect(UP), []);

        // A member that has moved is where it is now, and its old node can't remove it.
        assert_eq!(join(b, &group, member(&ids[0], two, 99), number(0)).await, census);
        assert_eq!(a.registry.census(&group).await.expect(UP).members, 25);
        assert_eq!(a.registry.members(&group, None, 1).await.expect(UP), [member(&ids[0], two, 99)]);
        let leave = async |member: &Member| a.registry.leave(&group, member, None).await.expect(UP).is_some();
        assert!(!leave(&member(&ids[0], one, 99)).await);
        assert!(!leave(&member(&ids[0], two, 98)).await, "the one before it on the same node is gone already");
        assert!(leave(&member(&ids[0], two, 99)).await);
        assert!(!leave(&member(&ids[0], two, 99)).await);
        for member in &listed[1..] {
            assert!(leave(member).await);
        }
        assert_eq!(a.registry.census(&group).await.expect(UP), Census::default());
        let census = join(a, &group, member(&ids[3], one, 0), number(77)).await;
        assert_eq!(census.charter, Some(number(77)), "a new group has a new charter");
    }
}

/// Of many who come first to an empty group, one lays down the charter.
pub async fn one_charter_wins(nodes: &mut Nodes) {
    let group = Group::Room("rush".parse().expect("well-formed"));
    let mut joins = JoinSet::new();
    for (i, link) in (0..).zip(nodes.iter()) {
        for j in 0..10 {
            let (registry, group) = (link.registry.clone(), group.clone());
            joins.spawn(async move {
                let (id, n) = (PairId::fresh().to_string(), i * 100 + j);
                let joined = registry.join(&group, member(&id, NodeId::fresh(), 0), number(n), None, None).await;
                joined.expect(UP).expect("no room is full without a capacity").charter
            });
        }
    }
    let charters = joins.join_all().await;
    assert!(charters.iter().all(|charter| *charter == charters[0]));
    let census = nodes[0].registry.census(&group).await.expect(UP);
    assert_eq!(census, Census { charter: charters[0].clone(), members: 30, ..Census::default() });
}

/// What a node is answerable for follows every change, whoever makes it.
pub async fn holdings_follow(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (one, two) = (NodeId::fresh(), NodeId::fresh());
    let holdings = async |node, limit| {
        let mut held = b.registry.holdings(node, limit).await.expect(UP);
        held.pairs.sort();
        held.members.sort_by_key(|(_, member)| member.id);
        held
    };
    let (mut pairs, mut fences) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let pair = created(a, two).await;
        fences.push(claimed(a, pair, one).await);
        pairs.push(pair);
    }
    let held: Vec<_> = pairs.iter().copied().zip(fences.iter().map(|fence| fence.nonce)).collect();
    assert_eq!(holdings(one, 100).await.pairs, held);
    assert_eq!(holdings(one, 3).await.pairs.len(), 3);
    assert_eq!(holdings(one, 0).await.pairs.len(), 0);
    assert_eq!(holdings(two, 100).await.pairs, []);
    // Released (also by another), taken by another, ended, taken again by the same node.
    for (n, by) in [(0, two), (1, one), (3, one)] {
        assert!(released(b, pairs[n], fences[n], by).await);
    }
    let theirs = claimed(b, pairs[1], two).await;
    a.registry.end(pairs[2], fences[2], Some(one), &[], &ALL).await.expect(UP);
    let again = claimed(a, pairs[3], one).await;
    assert!(!released(a, pairs[3], fences[3], one).await);
    assert_eq!(holdings(one, 100).await.pairs, [(pairs[3], again.nonce)]);
    assert_eq!(holdings(two, 100).await.pairs, [(pairs[1], theirs.nonce)]);
    assert!(released(a, pairs[3], again, one).await);
    assert_eq!(holdings(one, 100).await.pairs, []);
    // Claims that fail hold nothing.
    assert_eq!(a.registry.claim(pairs[2], one, 1).await.expect(UP), Claim::Ended);
    assert_eq!(a.registry.claim(PairId::fresh(), one, 1).await.expect(UP), Claim::Missing);
    assert!(matches!(a.registry.claim(pairs[1], one, 1).await.expect(UP), Claim::Held(_)));
    assert_eq!(holdings(one, 100).await.pairs, []);

    let (hall, band) = (Group::Room("hall".parse().expect("well-formed")), Group::Siblings(pairs[0]));
    for group in [&hall, &band] {
        for id in ["x", "y", "z"] {
            join(a, group, member(id, one, 0), number(0)).await;
        }
    }
    assert_eq!(holdings(one, 100).await.members.len(), 6);
    assert_eq!(holdings(one, 5).await.members.len(), 5);
    join(a, &hall, member("x", two, 0), number(0)).await;
    join(a, &hall, member("y", one, 1), number(0)).await;
    for id in ["x", "y", "z"] {
        assert!(a.registry.leave(&band, &member(id, one, 0), None).await.expect(UP).is_some());
    }
    let of_hall = |id, node, value| (hall.clone(), member(id, node, value));
    assert_eq!(holdings(one, 100).await.members, [of_hall("y", one, 1), of_hall("z", one, 0)]);
    assert_eq!(holdings(two, 100).await.members, [of_hall("x", two, 0)]);
}

/// Nodes are known while they say that they live, then known as expired, then declared dead, then buried.
pub async fn nodes_live_expire_and_are_buried(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (one, two, short) = (NodeId::fresh(), NodeId::fresh(), Duration::from_millis(30));
    let beat = async |node, n, lease| a.registry.beat(node, number(n), lease).await.expect(UP);
    let condemn = async |node| b.registry.condemn(node).await.expect(UP);
    let peers = async || b.registry.nodes().await.expect(UP);
    let expires = async |node| {
        until(async || peers().await.iter().any(|peer| peer.node == node && peer.expired), "a lease to run out")
            .await;
    };
    assert_eq!(beat(one, 1, LONG).await, Beat::Lapsed);
    assert_eq!(beat(one, 2, LONG).await, Beat::Kept);
    assert_eq!(beat(two, 3, short).await, Beat::Lapsed);
    expires(two).await;
    let known: Vec<_> = peers().await.into_iter().map(|peer| (peer.node, peer.value, peer.expired)).collect();
    assert_eq!(known, [(one, number(2), false), (two, number(3), true)]);
    assert_eq!(beat(two, 4, LONG).await, Beat::Lapsed, "late, and nobody has acted on that");
    assert_eq!(beat(two, 4, LONG).await, Beat::Kept);
    assert!(peers().await.iter().all(|peer| !peer.expired));
    assert_eq!(condemn(two).await, None, "it lives");
    assert_eq!(condemn(NodeId::fresh()).await, None, "nobody knows it");

    assert_eq!(beat(two, 5, short).await, Beat::Kept);
    expires(two).await;
    let sentence = condemn(two).await.expect("its lease has run out");
    assert_eq!(condemn(two).await, Some(sentence), "it stays so");
    assert_eq!(beat(two, 6, LONG).await, Beat::Condemned);
    assert!(peers().await.iter().any(|peer| peer.node == two && peer.expired), "and is not renewed");
    b.registry.bury(one, sentence).await.expect(UP);
    assert_eq!(beat(one, 6, LONG).await, Beat::Kept, "who lives is not buried");
    b.registry.bury(two, Sentence(sentence.0 + 1)).await.expect(UP);
    assert_eq!(beat(two, 6, LONG).await, Beat::Condemned, "not under another sentence");

    let (pair, kept) = (created(a, one).await, created(a, two).await);
    let fence = claimed(a, pair, two).await;
    a.registry.bury(two, sentence).await.expect(UP);
    assert_eq!(peers().await.iter().map(|peer| peer.node).collect::<Vec<_>>(), [one]);
    let held = b.registry.holdings(two, 10).await.expect(UP);
    assert_eq!(
        (held.pairs, held.kept),
        (vec![(pair, fence.nonce)], vec![kept]),
        "what stands is not forgotten with it"
    );
    assert_eq!(beat(two, 7, LONG).await, Beat::Lapsed, "it learns that it was forgotten, and begins anew");
    assert_eq!(beat(two, 7, LONG).await, Beat::Kept);
    b.registry.bury(two, sentence).await.expect(UP);
    assert_eq!(beat(two, 7, LONG).await, Beat::Kept, "that was in another life");

    a.registry.resign(two).await.expect(UP);
    assert_eq!(beat(two, 8, LONG).await, Beat::Condemned, "it said so itself");
    assert!(condemn(two).await.is_some_and(|again| again != sentence));
}
