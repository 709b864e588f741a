//! What is told in rooms: who comes and goes, and whatever else is appended to their talk; and what pairs are told by
//! others than their holders.

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{
    ALL, Nodes, UP, all_of, append, as_number, assert_chain, claimed, created, draft, groups::member, next_entry,
    number, released, subscribe_all, under, until,
};
use crate::{
    broker::{Appended, CROWD, Census, Changes, Counted, Group, Keep, Link, Member, STAY, Step},
    protocol::{NodeId, PairId, Position, Topic},
};

fn hall() -> (Group, Topic) {
    let name: crate::protocol::RoomName = "hall".parse().expect("well-formed");
    (Group::Room(name.clone()), Topic::Talk(name))
}

/// Something with a number in the middle, and how it is kept.
fn counted(text: &str) -> Counted {
    Counted { nonce: rand::random(), before: format!("{text} ").into(), after: "!".into() }
}

fn kept(told: &Counted, members: u64) -> Vec<u8> {
    let count = members.to_string();
    [&told.before[..], count.as_bytes(), &told.after].concat()
}

async fn come(link: &Link, group: &Group, member: Member, told: &Counted) -> Census {
    link.registry.join(group, member, number(0), None, Some((told, &ALL))).await.expect(UP).expect("it is not full")
}

async fn go(link: &Link, group: &Group, member: &Member, told: &Counted) -> Option<Position> {
    link.registry.leave(group, member, Some((told, &ALL))).await.expect(UP).map(|census| census.talk)
}

/// Who is added to a room or taken out of it is told in its talk by the same step, with how many there are then; what
/// changes nothing is not told, nor are groups of siblings.
pub async fn who_comes_and_goes_is_told(nodes: &mut Nodes) {
    let (group, topic) = hall();
    subscribe_all(nodes, &topic).await;
    let (one, two) = (NodeId::fresh(), NodeId::fresh());
    let (mut due, mut last) = (Vec::new(), Position::START);
    for n in 1..=200u64 {
        let told = counted("come");
        let census = come(&nodes[n as usize % 3], &group, member(&format!("m{n:03}"), one, n), &told).await;
        assert_eq!((census.members, census.talk.nonce), (n, told.nonce), "where it came is where it is told");
        last = census.talk;
        due.push(kept(&told, n));
    }
    let [a, b, _] = &*nodes;
    assert_eq!(b.registry.census(&group).await.expect(UP).talk, last);
    assert_eq!(come(a, &group, member("m001", two, 1), &counted("again")).await.talk, last, "it is replaced");
    let full = counted("full");
    let joined = a.registry.join(&group, member("x", one, 1), number(0), Some(200), Some((&full, &ALL))).await;
    assert_eq!(joined.expect(UP), None);
    assert_eq!(go(a, &group, &member("m001", one, 1), &counted("another's")).await, None);
    assert_eq!(go(a, &group, &member("nobody", one, 1), &counted("nobody")).await, None);
    let told = counted("gone");
    let left = go(b, &group, &member("m001", two, 1), &told).await.expect("it was there");
    assert_eq!(left.nonce, told.nonce);
    assert_eq!(go(b, &group, &member("m001", two, 1), &told).await, None);
    due.push(kept(&told, 199));
    // Without a word.
    let census = a.registry.leave(&group, &member("m002", one, 2), None).await.expect(UP);
    assert_eq!(census.map(|census| (census.members, census.talk)), Some((198, left)));

    let band = Group::Siblings(PairId::fresh());
    let census = come(a, &band, member("sib", one, 0), &counted("sibling")).await;
    assert_eq!((census.members, census.talk), (1, Position::START));
    assert_eq!(go(a, &band, &member("sib", one, 0), &counted("sibling")).await, Some(Position::START));

    let all = all_of(&*nodes[0].broker, &topic).await;
    assert_chain(Position::START, &all);
    assert_eq!(all.iter().map(|entry| entry.payload.to_vec()).collect::<Vec<_>>(), due);
    for link in nodes {
        for entry in &all {
            assert_eq!(next_entry(link).await, *entry, "live as it is kept");
        }
    }
}

/// In a crowd, those who come and go are told of together, in the order in which they did; what follows them waits behind
/// them, however few are left.
pub async fn crowds_are_told_of_together(nodes: &mut Nodes) {
    let (group, topic) = hall();
    let node = NodeId::fresh();
    let Group::Room(room) = group.clone() else { unreachable!("a hall is a room") };
    let name = |n: u64| format!("m{n:03}");
    let come = async |link: &Link, n| come(link, &group, member(&name(n), node, n), &counted("come")).await;
    for n in 0..CROWD - 1 {
        assert!(!come(&nodes[n as usize % 3], n).await.untold);
    }
    let [a, b, c] = &*nodes;
    let before = all_of(&*a.broker, &topic).await.len();
    assert_eq!(before as u64, CROWD - 1);
    let first = come(a, CROWD - 1).await;
    assert!(first.untold && first.members == CROWD, "{first:?}");
    for n in CROWD..CROWD + 300 {
        come(b, n).await;
    }
    let mut due = Vec::new();
    for n in [7, 8, 9] {
        assert!(go(c, &group, &member(&name(n), node, n), &counted("gone")).await.is_some());
    }
    come(c, 7).await;
    for n in 10..CROWD + 300 {
        go(a, &group, &member(&name(n), node, n), &counted("gone")).await;
    }
    assert!(b.registry.census(&group).await.expect(UP).untold, "few are left, and they wait all the same");
    assert_eq!(all_of(&*a.broker, &topic).await.len(), before, "nothing was told of them");
    b.broker.subscribe(&topic).await.expect(UP);
    let part = |text: &'static str| Bytes::from_static(text.as_bytes());
    let tell = async || {
        let joined = [part("come "), part(" of "), part("!")];
        let changes = Changes { nonce: rand::random(), joined, left: [part("gone "), part(" of "), part("?")] };
        c.registry.tell_changes(&room, &changes, &ALL).await.expect(UP)
    };
    let mut due_of = |text: &str, who: &[u64], end: &str| {
        let pair = |n: &u64| PairId::from_uuid(member(&name(*n), node, 0).id);
        let list = serde_json::to_vec(&who.iter().map(pair).collect::<Vec<_>>()).expect("a list");
        due.push([text.as_bytes(), b"8", b" of ", &list, end.as_bytes()].concat());
    };
    let range = |from: u64, to: u64| (from..to).collect::<Vec<_>>();
    due_of("come ", &range(CROWD - 1, 2 * CROWD - 1), "!");
    due_of("come ", &range(2 * CROWD - 1, CROWD + 300), "!");
    due_of("gone ", &[7, 8, 9], "?");
    due_of("come ", &[7], "!");
    due_of("gone ", &range(10, CROWD + 10), "?");
    due_of("gone ", &range(CROWD + 10, 2 * CROWD + 10), "?");
    due_of("gone ", &range(2 * CROWD + 10, CROWD + 300), "?");
    let mut waiting = 301 + 3 + 1 + CROWD + 290;
    for told in [CROWD, 45, 3, 1, CROWD, CROWD, 34] {
        waiting -= told;
        assert_eq!(tell().await, waiting);
    }
    assert_eq!(tell().await, 0, "nobody waits");
    assert!(!a.registry.census(&group).await.expect(UP).untold);
    let all = all_of(&*a.broker, &topic).await;
    assert_chain(Position::START, &all);
    assert_eq!(all[before..].iter().map(|entry| entry.payload.to_vec()).collect::<Vec<_>>(), due);
    assert!(!come(a, 500).await.untold, "there is no crowd any more: it is told at once");
    for entry in &all[before..] {
        assert_eq!(next_entry(&mut nodes[1]).await, *entry, "live as it is kept");
    }
}

/// Of many who take the same member out, one does, and tells it.
pub async fn one_tells_who_is_gone(nodes: &mut Nodes) {
    let (group, topic) = hall();
    let node = NodeId::fresh();
    for n in 0..20 {
        come(&nodes[0], &group, member(&format!("m{n}"), node, 0), &counted("come")).await;
    }
    let mut leaves = JoinSet::new();
    for link in nodes.iter() {
        for n in 0..20 {
            let (registry, group) = (link.registry.clone(), group.clone());
            leaves.spawn(async move {
                let told = counted(&format!("gone {n}"));
                let member = member(&format!("m{n}"), node, 0);
                registry.leave(&group, &member, Some((&told, &ALL))).await.expect(UP)
            });
        }
    }
    let taken = leaves.join_all().await.into_iter().flatten().count();
    let all = all_of(&*nodes[1].broker, &topic).await;
    assert_eq!((taken, all.len()), (20, 40), "each once");
    let last = all.last().expect("something is told");
    assert!(last.payload.ends_with(b" 0!"), "nobody is left: {last:?}");
    assert_eq!(nodes[2].registry.census(&group).await.expect(UP).members, 0);
}

/// An append says how many nodes it is on its way to.
pub async fn appends_say_whom_they_reach(nodes: &mut Nodes) {
    let (_, topic) = hall();
    let reached =
        async |link: &Link, n| match link.broker.append(&topic, None, &[draft(number(n))], &ALL).await.expect(UP) {
            Appended::At(_, reached) => reached,
            other => panic!("not {other:?}"),
        };
    assert_eq!(reached(&nodes[0], 0).await, 0);
    for (n, link) in (1..).zip(nodes.iter()) {
        link.broker.subscribe(&topic).await.expect(UP);
        assert_eq!(reached(&nodes[0], n).await, n);
    }
    nodes[1].broker.unsubscribe(&topic).await.expect(UP);
    assert_eq!(reached(&nodes[2], 9).await, 2);
}

/// Anybody may tell a pair something, whoever holds it, but nothing behind its end.
pub async fn the_living_are_told(nodes: &mut Nodes) {
    let [a, b, _] = &*nodes;
    let node = NodeId::fresh();
    let tell = async |pair, n| b.registry.tell(pair, &[draft(number(n))], &ALL).await.expect(UP);
    assert_eq!(tell(PairId::fresh(), 0).await, Appended::Missing);
    let pair = created(a, node).await;
    b.broker.subscribe(&pair.into()).await.expect(UP);
    assert!(matches!(tell(pair, 1).await, Appended::At(at, 1) if at.offset == 1), "nobody holds it");
    let fence = claimed(a, pair, node).await;
    assert!(matches!(tell(pair, 2).await, Appended::At(..)));
    a.registry.release(pair, fence, node, super::LONG, &[draft(number(0))], &ALL).await.expect(UP);
    assert_eq!(all_of(&*a.broker, &pair.into()).await.len(), 2, "its holder was not heard of all the same");
    let fence = claimed(a, pair, node).await;
    let opened = a.broker.append(&pair.into(), Some(under(fence)), &[draft(number(3))], &ALL).await.expect(UP);
    assert!(matches!(opened, Appended::At(..)));
    assert!(released(a, pair, fence, node).await);
    assert!(matches!(tell(pair, 4).await, Appended::At(..)));
    assert_eq!(a.registry.end(pair, fence, None, &[draft(number(5))], &ALL).await.expect(UP), Step::Taken(()));
    assert_eq!(tell(pair, 6).await, Appended::Refused);
    let all = all_of(&*a.broker, &pair.into()).await;
    assert_eq!(all.iter().map(|entry| as_number(&entry.payload)).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

/// What a history has before an entry can be given up, but never the newest.
pub async fn histories_are_cut(nodes: &mut Nodes) {
    let [a, b, _] = &*nodes;
    let topic = Topic::Pair(PairId::fresh());
    let mut positions = vec![Position::START];
    for n in 1..=100 {
        positions.push(append(a, &topic, number(n), &ALL).await);
    }
    let oldest = async || all_of(&*a.broker, &topic).await[0].position.offset;
    let cut = async |before: Position| b.broker.trim(&topic, before).await.expect(UP);
    cut(Position::START).await;
    assert_eq!(oldest().await, 1);
    cut(positions[40]).await;
    assert_eq!(oldest().await, 40, "the entry itself stays");
    cut(positions[20]).await;
    assert_eq!(oldest().await, 40);
    for late in [positions[99], Position { offset: 1_000, nonce: 7 }] {
        cut(late).await;
        assert_eq!(oldest().await, 101 - STAY as u64);
    }
    cut(Position { offset: 5, nonce: 5 }).await;
    b.broker.trim(&Topic::Pair(PairId::fresh()), positions[9]).await.expect(UP);
    let all = all_of(&*a.broker, &topic).await;
    assert_chain(positions[100 - STAY], &all);
}

/// While a room has members its talk stays; then it goes after its time.
pub async fn talk_outlives_its_room(nodes: &mut Nodes) {
    let [a, b, _] = &*nodes;
    let (group, topic) = hall();
    let keep = Keep { events: 1, age: std::time::Duration::ZERO, most: 10 };
    let told = counted("come");
    let member = member("m", NodeId::fresh(), 0);
    a.registry.join(&group, member.clone(), number(0), None, Some((&told, &keep))).await.expect(UP);
    until(async || b.broker.heads(std::slice::from_ref(&topic)).await.expect(UP)[0].offset == 1, "it is told").await;
    a.registry.leave(&group, &member, Some((&counted("gone"), &keep))).await.expect(UP);
    let head = b.broker.heads(std::slice::from_ref(&topic)).await.expect(UP)[0];
    assert_eq!(head.offset, 2, "it is not gone with its last member");
    let census = come(a, &group, member, &counted("come")).await;
    assert_eq!((census.members, census.talk.offset), (1, 3));
}
