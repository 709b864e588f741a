//! Live traffic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{
    ALL, LONG, Nodes, UP, all_of, append, append_one, as_number, draft, join, next, next_entry, next_message, number,
    room, subscribe_all, until,
};
use crate::{
    broker::{Delivery, Group, Member},
    protocol::{NodeId, PairId, Topic},
};

/// Payloads of one node reach every subscriber in order, the publisher itself included.
pub async fn published_in_order_to_all(nodes: &mut Nodes) {
    let topic = room("order");
    subscribe_all(nodes, &topic).await;
    for n in 0..5_000 {
        nodes[0].broker.publish(&topic, number(n)).expect(UP);
    }
    for link in nodes {
        for n in 0..5_000 {
            assert_eq!(next_message(link).await, (topic.clone(), number(n)));
        }
    }
}

/// A node hears what it subscribed to, and nothing else; after the end of a subscription nothing more.
pub async fn only_what_was_subscribed(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let (mine, other, marker) = (room("mine"), Topic::Node(NodeId::fresh()), Topic::Pair(PairId::fresh()));
    b.broker.subscribe(&mine).await.expect(UP);
    b.broker.subscribe(&marker).await.expect(UP);
    a.broker.publish(&other, number(1)).expect(UP);
    a.broker.publish(&mine, number(2)).expect(UP);
    assert_eq!(next_message(b).await, (mine.clone(), number(2)));

    b.broker.unsubscribe(&mine).await.expect(UP);
    // The first of these may still come, what follows the marker may not.
    for n in 3..5 {
        a.broker.publish(&mine, number(n)).expect(UP);
        a.broker.publish(&marker, number(n)).expect(UP);
        while next_message(b).await.0 != marker {
            assert_eq!(n, 3, "a delivery long after the subscription ended");
        }
    }
}

/// What is published or appended after `subscribe` has returned is delivered, whatever goes on meanwhile.
pub async fn nothing_is_missed_after_subscribe(nodes: &mut Nodes) {
    let [a, b, c] = nodes;
    for topic in [room("seam"), Topic::Pair(PairId::fresh())] {
        let (sent, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (mut senders, writer) = (JoinSet::new(), matches!(topic, Topic::Pair(_)));
        senders.spawn({
            let (broker, topic, sent, enough) = (a.broker.clone(), topic.clone(), sent.clone(), enough.clone());
            async move {
                while !enough.load(Ordering::SeqCst) {
                    // Counted before it is sent: what is counted later was sent later.
                    let n = sent.fetch_add(1, Ordering::SeqCst);
                    if writer {
                        append_one(&*broker, &topic, draft(number(n)), &ALL).await.expect(UP);
                    } else {
                        broker.publish(&topic, number(n)).expect(UP);
                        sleep(Duration::from_micros(50)).await;
                    }
                }
            }
        });
        until(async || sent.load(Ordering::SeqCst) > 20, "the sender to be under way").await;
        tokio::join!(async { b.broker.subscribe(&topic).await.expect(UP) }, async {
            c.broker.subscribe(&topic).await.expect(UP);
        });
        let first = sent.load(Ordering::SeqCst);
        until(async || sent.load(Ordering::SeqCst) > first + 50, "more to be sent").await;
        enough.store(true, Ordering::SeqCst);
        senders.join_all().await;
        let last = sent.load(Ordering::SeqCst) - 1;
        for link in [&mut *b, c] {
            let mut heard = None;
            while heard != Some(last) {
                let n = match next(link).await {
                    Delivery::Message(_, payload) => as_number(&payload),
                    Delivery::Entry(_, entry) => as_number(&entry.payload),
                    other => panic!("not {other:?}"),
                };
                assert!(heard.is_none_or(|before| n == before + 1), "{n} after {heard:?}");
                assert!(heard.is_some() || n <= first, "{n} is the first, {first} was sent after subscribing");
                heard = Some(n);
            }
        }
    }
}

/// The last of many concurrent changes of one subscription wins.
pub async fn the_last_change_of_a_subscription_wins(nodes: &mut Nodes) {
    let [a, b, c] = nodes;
    let (on, off, marker) = (room("on"), room("off"), room("marker"));
    b.broker.subscribe(&marker).await.expect(UP);
    c.broker.subscribe(&off).await.expect(UP);
    for _ in 0..20 {
        let changes = (0..41).map(|i| {
            let broker = b.broker.clone();
            let (on, off) = (on.clone(), off.clone());
            async move {
                let (one, two) = if i % 2 == 0 { (&on, &off) } else { (&off, &on) };
                let (first, second) = tokio::join!(broker.subscribe(one), broker.unsubscribe(two));
                first.expect(UP);
                second.expect(UP);
            }
        });
        // Asked for in this order, however much of the runtime's patience the rounds before have used up.
        tokio::task::unconstrained(join_all(changes)).await;
        a.broker.publish(&off, number(0)).expect(UP);
        a.broker.publish(&on, number(1)).expect(UP);
        a.broker.publish(&marker, number(2)).expect(UP);
        assert_eq!(next_message(b).await, (on.clone(), number(1)));
        assert_eq!(next_message(b).await, (marker.clone(), number(2)));
        // Topics may go different ways: by now this has gone its own, and is none of the next round's.
        assert_eq!(next_message(c).await, (off.clone(), number(0)));
    }
}

/// Payloads are bytes: any, none, many, and such as look like the medium's own words.
pub async fn payloads_are_bytes(nodes: &mut Nodes) {
    let [a, b, _] = nodes;
    let topic = Topic::Pair(PairId::fresh());
    b.broker.subscribe(&topic).await.expect(UP);
    let mut odd: Vec<Bytes> = ["", "message", "e1-1 0-0 x", "subscribe", " ", "OK", "QUEUED"].map(Bytes::from).into();
    odd.push((0..=255).collect());
    odd.push(vec![7; 1 << 20].into());
    for payload in &odd {
        a.broker.publish(&topic, payload.clone()).expect(UP);
        assert_eq!(next_message(b).await.1, payload);
        a.broker.publish_behind(&topic, b"a\r\nhead", payload.clone()).expect(UP);
        assert_eq!(next_message(b).await.1, [b"a\r\nhead", &payload[..]].concat());
        append(a, &topic, payload.clone(), &ALL).await;
        assert_eq!(next_entry(b).await.payload, payload);
    }
    let payloads: Vec<_> = all_of(&*b.broker, &topic).await.into_iter().map(|entry| entry.payload).collect();
    assert_eq!(payloads, odd);

    let (pair, group) = (PairId::fresh(), Group::Siblings(PairId::fresh()));
    for odd in odd {
        let member = Member { id: PairId::fresh().uuid(), node: NodeId::fresh(), value: odd.clone() };
        assert_eq!(join(a, &group, member.clone(), odd.clone()).await.charter, Some(odd.clone()));
        assert_eq!(b.registry.members(&group, None, 9).await.expect(UP), vec![member.clone()]);
        assert!(b.registry.leave(&group, &member, None).await.expect(UP).is_some());
        if b.registry.create(pair, odd.clone(), NodeId::fresh(), LONG, LONG).await.expect(UP) {
            assert_eq!(b.registry.look_up(pair).await.expect(UP).map(|record| record.facts), Some(odd));
        }
    }
}
