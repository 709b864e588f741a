//! The contract of the two ports: a function per clause, over three nodes of one medium that nobody else uses.
//!
//! Every back end is run against all of them (`tests/broker_contract.rs`). A clause panics when it is broken. Waiting
//! is always for something to happen, with a deadline, never for some time to pass; except where time is the point.

#![allow(clippy::missing_panics_doc, reason = "panicking is how a clause says that it is broken")]

mod groups;
mod histories;
mod live;
mod many;
mod pairs;
mod rooms;
mod talk;

use std::{future::Future, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

pub use self::{
    groups::{groups_have_members_in_order, holdings_follow, nodes_live_expire_and_are_buried, one_charter_wins},
    histories::{
        a_lost_tail_is_told_to_its_writer, a_nonce_is_added_once, appending_is_fenced,
        concurrent_appenders_make_one_chain, heads_of_many, histories_are_trimmed, histories_outlive_their_record,
        live_and_kept_are_the_same, pages_tell_where_they_stand,
    },
    live::{
        nothing_is_missed_after_subscribe, only_what_was_subscribed, payloads_are_bytes, published_in_order_to_all,
        the_last_change_of_a_subscription_wins,
    },
    many::{
        a_contribution_is_added_once, contributions_go_by_weight_and_by_age, contributions_make_one_chain,
        the_latest_come_first,
    },
    pairs::{
        a_key_begins_once, claims_count_up, facts_are_fenced, keepers_follow, lost_records_are_restored,
        one_ender_wins, one_releaser_wins, only_who_holds_it_ends_it, records_are_made_once,
    },
    rooms::{
        charters_follow_rules, full_groups_take_nobody, one_rule_wins, places_are_taken_once,
        rules_are_listed_in_order, rules_are_replaced_by_who_knows_them, the_list_follows_the_rules,
    },
    talk::{
        appends_say_whom_they_reach, crowds_are_told_of_together, histories_are_cut, one_tells_who_is_gone,
        talk_outlives_its_room, the_living_are_told, who_comes_and_goes_is_told,
    },
};
use super::{
    Appended, Broker, BrokerError, Census, Claim, Delivery, Draft, Entry, Group, Keep, Link, Member, Step, Under,
};
use crate::protocol::{Fence, NodeId, PairId, Position, Topic};

/// How long anything that must happen may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// A time that no clause waits for.
const LONG: Duration = Duration::from_secs(600);
/// Why a call may not fail here.
const UP: &str = "the broker under test is up";
/// Keeps all that a clause appends.
const ALL: Keep = Keep { events: 10_000, age: LONG, most: 10_000 };

/// The three nodes that a clause is about.
pub type Nodes = [Link; 3];

fn room(name: &str) -> Topic {
    Topic::Room(name.parse().expect("the clauses' names are well-formed"))
}

fn number(n: u64) -> Bytes {
    n.to_string().into()
}

fn as_number(payload: &Bytes) -> u64 {
    std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok()).expect("a number was sent")
}

/// The next delivery.
pub async fn next(link: &mut Link) -> Delivery {
    timeout(DEADLINE, link.deliveries.recv()).await.expect("a delivery in time").expect("the link is alive")
}

async fn next_message(link: &mut Link) -> (Topic, Bytes) {
    match next(link).await {
        Delivery::Message(topic, payload) => (topic, payload),
        other => panic!("a message was expected, not {other:?}"),
    }
}

async fn next_entry(link: &mut Link) -> Entry {
    match next(link).await {
        Delivery::Entry(_, entry) => entry,
        other => panic!("an entry was expected, not {other:?}"),
    }
}

fn draft(payload: Bytes) -> Draft {
    Draft { nonce: rand::random(), payload }
}

/// Appends one draft under no fence.
pub async fn append_one(
    broker: &dyn Broker,
    topic: &Topic,
    draft: Draft,
    keep: &Keep,
) -> Result<Position, BrokerError> {
    match broker.append(topic, None, &[draft], keep).await? {
        Appended::At(position, _) => Ok(position),
        other => panic!("without a fence nothing is refused: {other:?}"),
    }
}

async fn append(link: &Link, topic: &Topic, payload: Bytes, keep: &Keep) -> Position {
    append_one(&*link.broker, topic, draft(payload), keep).await.expect(UP)
}

async fn subscribe_all(nodes: &Nodes, topic: &Topic) {
    for link in nodes {
        link.broker.subscribe(topic).await.expect(UP);
    }
}

/// Every entry of a history.
pub async fn all_of(broker: &dyn Broker, topic: &Topic) -> Vec<Entry> {
    let (mut after, mut entries) = (Position::START, Vec::new());
    loop {
        let page = broker.read(topic, after, 500).await.expect(UP);
        let Some(last) = page.entries.last() else { return entries };
        after = last.position;
        entries.extend(page.entries);
    }
}

/// That each entry names the one before it, from `before` on, without a hole.
pub fn assert_chain(before: Position, entries: &[Entry]) {
    entries.iter().fold(before, |before, entry| {
        assert_eq!(entry.previous, before, "an entry names its predecessor");
        assert_eq!(entry.position.offset, before.offset + 1, "offsets have no holes");
        entry.position
    });
}

/// Waits until `question` is answered with true.
pub async fn until<F: Future<Output = bool>>(mut question: impl FnMut() -> F, what: &str) {
    let end = Instant::now() + DEADLINE;
    while !question().await {
        assert!(Instant::now() < end, "in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// A fresh pair's record.
async fn created(link: &Link, keeper: NodeId) -> PairId {
    let pair = PairId::fresh();
    assert!(link.registry.create(pair, number(1), keeper, LONG, LONG).await.expect(UP));
    pair
}

async fn claimed(link: &Link, pair: PairId, node: NodeId) -> Fence {
    match link.registry.claim(pair, node, rand::random()).await.expect(UP) {
        Claim::Won(fence) => fence,
        other => panic!("not {other:?}"),
    }
}

/// Joins a group that takes any number of members.
async fn join(link: &Link, group: &Group, member: Member, charter: Bytes) -> Census {
    let joined = link.registry.join(group, member, charter, None, None).await.expect(UP);
    joined.expect("it has no capacity that could be reached")
}

fn under(fence: Fence) -> Under {
    Under { fence, after: None }
}

/// Releases without a word; whether that was taken.
async fn released(link: &Link, pair: PairId, fence: Fence, keeper: NodeId) -> bool {
    link.registry.release(pair, fence, keeper, LONG, &[], &ALL).await.expect(UP) == Step::Taken(())
}
