//! Rules of rooms, and groups with a capacity.

use bytes::Bytes;
use tokio::task::{JoinSet, yield_now};

use super::{Nodes, UP, groups::member, join, number};
use crate::{
    broker::{Census, Group, Holdings, Link, Member, Rule},
    protocol::{NodeId, PairId, RoomName},
};

/// How many members a room takes, where that matters.
const PLACES: u64 = 5;

fn name(text: &str) -> RoomName {
    text.parse().expect("the clauses' names are well-formed")
}

fn rule(version: u64) -> Rule {
    Rule { version, value: number(version) }
}

/// Takes one of a group's places, if there is one.
async fn enter(link: &Link, group: &Group, member: Member, capacity: u64) -> Option<Census> {
    link.registry.join(group, member, number(0), Some(capacity), None).await.expect(UP)
}

/// Lays down a rule, or takes it back, and says nothing of a charter.
async fn lay_down(link: &Link, room: &RoomName, version: u64, rule: Option<Rule>) -> bool {
    link.registry.lay_down(room, version, rule, None).await.expect(UP)
}

async fn census(link: &Link, room: &RoomName) -> Census {
    link.registry.census(&Group::Room(room.clone())).await.expect(UP)
}

async fn rules(link: &Link, after: Option<&str>, limit: usize) -> Vec<(RoomName, Rule)> {
    link.registry.rules(after, limit).await.expect(UP)
}

/// A full group takes nobody, and is as it was; who is in it may join again, from wherever.
pub async fn full_groups_take_nobody(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let [one, two, other] = [(); 3].map(|()| NodeId::fresh());
    for group in [Group::Room(name("hall")), Group::Siblings(PairId::fresh())] {
        let member = |id: u64, node, value| member(&format!("{id}"), node, value);
        assert_eq!(enter(a, &group, member(0, one, 0), 0).await, None, "it has no places at all");
        assert_eq!(b.registry.census(&group).await.expect(UP), Census::default());
        for id in 0..PLACES {
            let joined = enter(a, &group, member(id, one, 0), PLACES).await.expect("there is a place");
            assert_eq!(joined.members, id + 1);
        }
        let full = b.registry.census(&group).await.expect(UP);
        let members = b.registry.members(&group, None, 100).await.expect(UP);
        for capacity in [PLACES, PLACES - 1, 0] {
            assert_eq!(enter(b, &group, member(9, other, 0), capacity).await, None);
        }
        assert_eq!(b.registry.census(&group).await.expect(UP), full);
        assert_eq!(b.registry.members(&group, None, 100).await.expect(UP), members);
        assert_eq!(
            b.registry.holdings(other, 100).await.expect(UP),
            Holdings::default(),
            "it has nothing to answer for"
        );

        // Who is in it may join again: also when it has more members than it is to have by now.
        assert_eq!(enter(a, &group, member(0, one, 1), PLACES).await.as_ref(), Some(&full));
        assert_eq!(enter(b, &group, member(1, two, 2), 1).await.as_ref(), Some(&full));
        let members = b.registry.members(&group, None, 2).await.expect(UP);
        assert_eq!(members, [member(0, one, 1), member(1, two, 2)]);
        assert_eq!(b.registry.holdings(two, 100).await.expect(UP).members, [(group.clone(), member(1, two, 2))]);
        assert!(a.registry.leave(&group, &member(0, one, 1), None).await.expect(UP).is_some());
        assert_eq!(enter(b, &group, member(9, two, 0), PLACES).await, Some(full), "there is a place again");
        assert!(a.registry.leave(&group, &member(1, two, 2), None).await.expect(UP).is_some());
        assert!(a.registry.leave(&group, &member(9, two, 0), None).await.expect(UP).is_some());
    }
}

/// Of many who come at once, as many get in as there are places.
pub async fn places_are_taken_once(nodes: &mut Nodes) {
    let group = Group::Room(name("rush"));
    let mut joins = JoinSet::new();
    for link in nodes.iter() {
        for _ in 0..20 {
            let (registry, group) = (link.registry.clone(), group.clone());
            joins.spawn(async move {
                let (pair, node) = (PairId::fresh(), NodeId::fresh());
                let member = member(&pair.to_string(), node, 0);
                let joined = registry.join(&group, member, number(0), Some(PLACES), None).await.expect(UP);
                (pair.uuid(), node, joined)
            });
        }
    }
    let (inside, outside): (Vec<_>, Vec<_>) = joins.join_all().await.into_iter().partition(|(.., in_)| in_.is_some());
    let mut counts: Vec<_> = inside.iter().flat_map(|(.., census)| census).map(|census| census.members).collect();
    counts.sort_unstable();
    assert_eq!(counts, (1..=PLACES).collect::<Vec<_>>(), "each was told another number");
    let members = nodes[0].registry.members(&group, None, 100).await.expect(UP);
    let mut ids: Vec<_> = inside.iter().map(|(id, ..)| *id).collect();
    ids.sort();
    assert_eq!(members.iter().map(|member| member.id).collect::<Vec<_>>(), ids);
    for (_, node, _) in outside {
        assert_eq!(nodes[1].registry.holdings(node, 10).await.expect(UP), Holdings::default());
    }
}

/// Of many who replace the same rule one does it, be it the first or a later one.
pub async fn one_rule_wins(nodes: &mut Nodes) {
    let room = name("rush");
    let mut before = 0;
    for round in 1..=3 {
        let mut tries = JoinSet::new();
        for (i, link) in (0..).zip(nodes.iter()) {
            for j in 0..10 {
                let (registry, room) = (link.registry.clone(), room.clone());
                let version = round * 1_000 + i * 100 + j;
                tries.spawn(async move {
                    let laid = registry.lay_down(&room, before, Some(rule(version)), None).await.expect(UP);
                    laid.then_some(version)
                });
            }
        }
        let winners: Vec<_> = tries.join_all().await.into_iter().flatten().collect();
        let [winner] = winners[..] else { panic!("these all won: {winners:?}") };
        assert_eq!(census(&nodes[0], &room).await.rule, Some(rule(winner)));
        before = winner;
    }
}

/// A rule is replaced and taken back by who names the one in force, and by nobody else; it outlives the members; and
/// what is so already is taken as done.
pub async fn rules_are_replaced_by_who_knows_them(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (room, group, node) = (name("hall"), Group::Room(name("hall")), NodeId::fresh());
    // Versions that a number of 53 bits would not tell apart.
    let [first, second, third] = [u64::MAX, u64::MAX - 1, u64::MAX - 2];
    let other = Rule { version: 7, value: Bytes::from_static(b"\x00\xff message") };
    assert!(lay_down(a, &name("hall/annex"), 0, Some(other.clone())).await);
    assert_eq!(census(b, &room).await, Census::default());
    assert!(!lay_down(a, &room, 9, Some(rule(first))).await, "there is none that could be replaced");
    assert_eq!(census(b, &room).await, Census::default());
    assert!(lay_down(a, &room, 9, None).await, "there is none already");

    assert!(lay_down(a, &room, 0, Some(rule(first))).await);
    assert!(lay_down(b, &room, 0, Some(rule(first))).await, "the answer may have been lost");
    let ruled =
        |charter, members, version| Census { charter, members, rule: Some(rule(version)), ..Census::default() };
    assert_eq!(census(b, &room).await, ruled(None, 0, first));
    assert_eq!(join(b, &group, member("x", node, 0), number(1)).await, ruled(Some(number(1)), 1, first));
    for stale in [0, second, 9] {
        assert!(!lay_down(b, &room, stale, Some(rule(third))).await);
        assert!(!lay_down(b, &room, stale, None).await);
    }
    assert!(lay_down(b, &room, first, Some(rule(second))).await);
    assert!(lay_down(b, &room, first, Some(rule(second))).await, "the answer may have been lost");
    assert!(!lay_down(b, &room, 0, Some(rule(first))).await, "that was long ago");
    assert_eq!(join(a, &group, member("y", node, 0), number(2)).await, ruled(Some(number(1)), 2, second));
    for id in ["x", "y"] {
        assert!(a.registry.leave(&group, &member(id, node, 0), None).await.expect(UP).is_some());
    }
    assert_eq!(census(b, &room).await, ruled(None, 0, second));

    assert!(lay_down(a, &room, second, None).await);
    assert!(lay_down(a, &room, second, None).await, "the answer may have been lost");
    assert_eq!(census(b, &room).await, Census::default());
    assert!(!lay_down(a, &room, second, Some(rule(third))).await, "it is not in force any more");
    assert!(lay_down(a, &room, 0, Some(rule(third))).await);
    assert_eq!(census(b, &room).await, ruled(None, 0, third));
    assert_eq!(census(b, &name("hall/annex")).await.rule, Some(other), "another room has its own");
    let siblings = Group::Siblings(PairId::fresh());
    assert_eq!(join(a, &siblings, member("z", node, 0), number(3)).await.rule, None);
}

/// The charter is replaced with the rule, if there are members, and if the rule is.
pub async fn charters_follow_rules(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (room, group) = (name("hall"), Group::Room(name("hall")));
    let charter = |n| Some(number(n));
    let lay_down = async |version, rule, charter| a.registry.lay_down(&room, version, rule, charter).await.expect(UP);
    let is = async || census(b, &room).await.charter;
    assert!(lay_down(0, Some(rule(1)), charter(10)).await);
    assert_eq!(is().await, None, "nobody is there");
    let member = member("x", NodeId::fresh(), 0);
    assert_eq!(join(b, &group, member.clone(), number(20)).await.charter, charter(20), "the first member's own");
    assert!(lay_down(1, Some(rule(2)), None).await);
    assert_eq!(is().await, charter(20), "no other was given");
    assert!(lay_down(2, Some(rule(3)), charter(30)).await);
    assert_eq!(is().await, charter(30));
    assert!(!lay_down(2, Some(rule(4)), charter(40)).await);
    assert!(lay_down(2, Some(rule(3)), charter(40)).await);
    assert_eq!(is().await, charter(30), "nothing was replaced");
    assert_eq!(join(b, &group, member.clone(), number(20)).await.charter, charter(30));
    assert!(lay_down(3, None, Some(Bytes::new())).await);
    assert_eq!(is().await, Some(Bytes::new()), "as empty as it was given");
    assert!(b.registry.leave(&group, &member, None).await.expect(UP).is_some());
    assert_eq!(is().await, None, "it went with the last member");
}

/// The rooms with rules are listed in pages, in the order of their names.
pub async fn rules_are_listed_in_order(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    assert_eq!(rules(b, None, 10).await, []);
    // A client of Redis may take what begins with that word for something else.
    let names = ["message", "Message", "~", "-", ".", "hall", "hall/1", "hall-1"].map(str::to_owned);
    let mut all: Vec<RoomName> =
        names.into_iter().chain((0..292).map(|n| format!("r{n}"))).map(|n| name(&n)).collect();
    for (n, room) in (1..).zip(&all) {
        assert!(lay_down(a, room, 0, Some(rule(n))).await);
    }
    let numbered: Vec<_> = all.iter().cloned().zip((1..).map(rule)).collect();
    for (room, rule) in numbered.iter().step_by(3) {
        assert!(lay_down(b, room, rule.version, None).await);
    }
    let mut left: Vec<_> =
        numbered.iter().enumerate().filter(|(i, _)| i % 3 != 0).map(|(_, rule)| rule.clone()).collect();
    left.sort_by(|(a, _), (b, _)| a.cmp(b));
    for limit in [7, 100, 1_000] {
        let mut listed: Vec<(RoomName, Rule)> = Vec::new();
        loop {
            let after = listed.last().map(|(room, _)| room.to_string());
            let page = rules(b, after.as_deref(), limit).await;
            listed.extend(page.iter().cloned());
            if page.len() < limit {
                break;
            }
        }
        assert_eq!(listed, left, "in pages of {limit}");
    }
    assert_eq!(rules(b, None, 0).await, []);
    // Names that nothing has, that had a rule, that are no names.
    all.sort();
    for after in ["hall/0", "message", "", "a b", "\u{e9}"] {
        let next = left.iter().find(|(room, _)| room.as_str() > after).cloned();
        assert_eq!(rules(b, Some(after), 1).await, Vec::from_iter(next), "after {after:?}");
    }
}

/// While rules are taken back, others are laid down and all are listed, also by calls that are given up half-way: in the
/// end those in force are listed, and what is only replaced is always.
pub async fn the_list_follows_the_rules(nodes: &mut Nodes) {
    let rooms: Vec<RoomName> = (100..140).map(|n| name(&format!("r{n}"))).collect();
    for room in &rooms {
        assert!(lay_down(&nodes[0], room, 0, Some(rule(1))).await);
    }
    let steady = name("steady");
    assert!(lay_down(&nodes[0], &steady, 0, Some(rule(1))).await);
    for version in 1..=10 {
        let mut changes = JoinSet::new();
        for room in &rooms {
            let ([a, b, _], room) = (nodes.each_ref().map(|link| link.registry.clone()), room.clone());
            let next = (room.clone(), rule(version + 1));
            changes.spawn(async move {
                assert!(a.lay_down(&room, version, None, None).await.expect(UP));
            });
            changes.spawn(async move {
                while !b.lay_down(&next.0, 0, Some(next.1.clone()), None).await.expect(UP) {
                    yield_now().await;
                }
            });
        }
        let (b, replaced) = (nodes[1].registry.clone(), steady.clone());
        changes.spawn(async move {
            for n in 0..20 {
                let is = (version - 1) * 20 + n + 1;
                assert!(b.lay_down(&replaced, is, Some(rule(is + 1)), None).await.expect(UP));
            }
        });
        let lists = async {
            loop {
                let listed = rules(&nodes[2], None, 100).await;
                assert_eq!(listed.iter().filter(|(room, _)| *room == steady).count(), 1, "it always has a rule");
                yield_now().await;
            }
        };
        tokio::select! {
            _ = changes.join_all() => {}
            () = lists => {}
        }
        let mut in_force: Vec<_> = rooms.iter().map(|room| (room.clone(), rule(version + 1))).collect();
        in_force.push((steady.clone(), rule(version * 20 + 1)));
        assert_eq!(rules(&nodes[1], None, 100).await, in_force);
    }
}
