//! Each check can fail: a sound book is falsified in one way, and that is reported.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::{Findings, check};
use crate::record::{Act, Book, Frame, Heard, Link, Order, Page, Pipe, Promises};
use crate::support::{Closed, kind_of};

fn event(number: usize, kind: &str, data: &Value, key: Option<&str>) -> Value {
    let mut params =
        json!({"type": kind, "cursor": format!("c{number}"), "at": "2025-01-01T00:00:01.000Z", "data": data});
    if let Some(key) = key {
        params["cause"] = json!({"key": key});
    }
    params
}

fn order(act: Act, key: &str, params: Value, result: Value) -> Order {
    Order {
        act,
        key: key.into(),
        params,
        first_sent: 500,
        last_sent: 600,
        attempts: 2,
        unsure: None,
        answer: Some((700, Ok(result))),
        again: Vec::new(),
        given_up: false,
    }
}

fn closed(code: u16) -> Closed {
    Closed { code: Some(code), reason: String::new() }
}

/// A run in which a node drained: two pairs in a room, each with two epochs.
fn sound() -> Book {
    let node = "127.0.0.1:1".parse().unwrap();
    let page = |number: usize| {
        let other = 1 - number;
        let told = [
            ("client.opened", json!({"epoch": 1, "node": "a"}), None),
            ("client.changed", json!({"meta": {}}), Some("k1")),
            ("client.closed", json!({"epoch": 1, "by": "gateway"}), None),
            ("client.opened", json!({"epoch": 2, "node": "b"}), None),
            ("client.changed", json!({"meta": {}}), Some("k2")),
        ];
        let told: Vec<_> =
            told.iter().enumerate().map(|(at, (kind, data, key))| event(at, kind, data, *key)).collect();
        let text = format!("p {number} 9");
        let first = vec![Frame::Of(other, 0, 1), Frame::Of(other, 0, 2), Frame::Pushed(text.clone())];
        let second = vec![Frame::Of(other, 0, 3), Frame::Of(other, 1, 4)];
        Page {
            pair: format!("pair_{number}"),
            rooms: vec!["hall".into()],
            heard: told.iter().map(|params| Heard { when: 1_000, said: 1_000, params: params.clone() }).collect(),
            links: vec![Link { node, warned: true, ended: Some(closed(1012)) }],
            orders: vec![
                order(Act::Set, "k1", json!({}), json!({"meta": {}})),
                order(Act::Push, "k3", json!({"text": text}), json!({"position": 1})),
                order(Act::Set, "k2", json!({}), json!({"meta": {}})),
            ],
            pipes: vec![
                Pipe { node, opened: 0, ended: Some((50_000, closed(1012), false)), sent: vec![1, 2, 3], got: first },
                Pipe { node, opened: 100, ended: None, sent: vec![4, 5], got: second },
            ],
            told,
            settled: usize::MAX,
            odd: Vec::new(),
        }
    };
    let promises = Promises { histories: true, pipes: false, answers: true, draining: true };
    let names = BTreeMap::from([(node, "a".to_owned())]);
    Book { promises, harmed: HashSet::new(), names, pages: vec![page(0), page(1)] }
}

/// What is found after one falsification of the first pair's page.
fn falsified(change: impl FnOnce(&mut Page)) -> Findings {
    let mut book = sound();
    change(&mut book.pages[0]);
    check(&book)
}

#[track_caller]
fn reported(found: &Findings, rule: &str, words: &str) {
    let fits = found.violations.iter().any(|v| v.rule == rule && v.pair == "pair_0" && v.what.contains(words));
    assert!(fits, "{rule} with {words:?} is not in {:#?}", found.violations);
}

fn gap(lost: Option<u64>) -> Heard {
    Heard { when: 1_000, said: 1_000, params: json!({"type": "gap", "cursor": "g", "data": {"lost": lost}}) }
}

#[test]
fn a_sound_book_is_sound() {
    let found = check(&sound());
    assert!(found.violations.is_empty(), "{:#?}", found.violations);
    assert_eq!((found.lost, found.repeated, found.commands, found.events), (0, 0, 6, 10));
    assert_eq!((found.frames, found.frames_lost), (10, 0));
}

#[test]
fn a_dropped_event_is_reported_and_a_gap_covers_it() {
    let found = falsified(|page| drop(page.heard.remove(1)));
    reported(&found, "events", "no gap was told");
    assert_eq!(found.lost, 1);
    let found = falsified(|page| page.heard[1] = gap(Some(1)));
    assert!(found.violations.is_empty(), "{:#?}", found.violations);
    let found = falsified(|page| page.heard[1] = gap(Some(2)));
    reported(&found, "events", "1 are missing");
    let found = falsified(|page| page.heard[1] = gap(None));
    reported(&found, "events", "without a count");
    let found = falsified(|page| page.heard.insert(1, gap(Some(1))));
    reported(&found, "events", "nothing is missing");
    let found = falsified(|page| drop(page.heard.pop()));
    reported(&found, "events", "the last 1 events");
}

#[test]
fn a_doubled_a_swapped_and_a_changed_event_are_reported() {
    let found = falsified(|page| page.heard.insert(2, page.heard[1].clone()));
    reported(&found, "events", "told twice");
    assert_eq!(found.repeated, 1);
    reported(&falsified(|page| page.heard.swap(1, 2)), "events", "after a later one");
    reported(&falsified(|page| page.heard[1].params["data"] = json!(7)), "events", "is kept as");
    reported(&falsified(|page| drop(page.told.remove(1))), "events", "is not in the history");
}

#[test]
fn a_history_that_was_lost_is_told_by_a_gap() {
    let lost = |gaps: &[Heard]| {
        let mut book = sound();
        book.promises.histories = false;
        let page = &mut book.pages[0];
        page.told.drain(..3);
        page.heard.splice(3..3, gaps.iter().cloned());
        check(&book)
    };
    reported(&lost(&[]), "events", "the history changed");
    let found = lost(&[gap(None)]);
    assert!(found.violations.is_empty(), "{:#?}", found.violations);
}

#[test]
fn a_doubled_and_a_missing_effect_are_reported() {
    let found = falsified(|page| {
        let mut twice = page.told[1].clone();
        twice["cursor"] = json!("c1-again");
        page.told.insert(2, twice.clone());
        page.heard.insert(2, Heard { when: 1_000, said: 1_000, params: twice });
    });
    reported(&found, "effects", "took effect 2 times");
    let found = falsified(|page| {
        page.told.remove(1);
        page.heard.remove(1);
    });
    reported(&found, "effects", "took no effect");
    let given_up = |page: &mut Page| (page.orders[0].answer, page.orders[0].given_up) = (None, true);
    let found = falsified(given_up);
    reported(&found, "effects", "never answered");
    assert_eq!(found.unknown, 1);
    let mut book = sound();
    book.promises.answers = false;
    given_up(&mut book.pages[0]);
    assert!(check(&book).violations.is_empty(), "the death of a node may leave a command unknown");
    reported(&falsified(|page| page.orders[0].answer = Some((700, Err(json!({}))))), "effects", "and took effect");
    reported(&falsified(|page| page.orders[0].again.push(json!(1))), "effects", "and later with");
    reported(&falsified(|page| drop(page.orders.remove(0))), "effects", "that nobody used");
}

#[test]
fn a_doubled_and_a_missing_push_are_reported() {
    let found = falsified(|page| {
        let pushed = page.pipes[0].got[2].clone();
        page.pipes[1].got.push(pushed);
    });
    reported(&found, "effects", "2 times");
    // Its pipe lived on for long enough.
    reported(&falsified(|page| drop(page.pipes[0].got.remove(2))), "effects", "took no effect");
    let found = falsified(|page| {
        page.pipes[0].got.remove(2);
        page.pipes[0].ended.as_mut().unwrap().0 = 900;
    });
    assert!(found.violations.is_empty(), "its pipe ended: {:#?}", found.violations);
    // A pipe that is paused writes nothing before it goes on.
    let paused = |resumed: u64| {
        falsified(|page| {
            page.pipes[0].got.remove(2);
            for (at, act, key, kind, answered) in
                [(1, Act::Pause, "p", "client.paused", 600), (3, Act::Resume, "r", "client.unpaused", resumed)]
            {
                let mut order = order(act, key, json!({}), json!({}));
                order.answer.as_mut().unwrap().0 = answered;
                page.orders.insert(at, order);
                let told = event(10 + at, kind, &json!({}), Some(key));
                page.told.push(told.clone());
                page.heard.push(Heard { when: 1_000, said: 1_000, params: told });
            }
        })
    };
    reported(&paused(30_000), "effects", "took no effect");
    assert!(paused(45_000).violations.is_empty(), "its pipe ended: {:#?}", paused(45_000).violations);
    reported(&falsified(|page| page.pipes[0].got.push(Frame::Pushed("p 9".into()))), "effects", "nobody pushed");
}

/// Takes an event out of the history and out of what was heard.
fn without(page: &mut Page, kind: &str, epoch: u64) {
    let is = |params: &Value| kind_of(params) == kind && params["data"]["epoch"] == epoch;
    page.told.retain(|params| !is(params));
    page.heard.retain(|heard| !is(&heard.params));
}

#[test]
fn sockets_open_and_close_once_and_in_order() {
    reported(&falsified(|page| without(page, "client.closed", 1)), "sockets", "was not told closed");
    reported(&falsified(|page| without(page, "client.opened", 1)), "sockets", "closed while None was open");
    reported(&falsified(|page| page.told.push(page.told[2].clone())), "sockets", "closed while Some(2) was open");
    reported(&falsified(|page| page.told.push(page.told[0].clone())), "sockets", "epoch 1 opened, after 2 had");
    reported(&falsified(|page| page.told[2]["data"]["by"] = json!("node_lost")), "sockets", "its node a was well");
    let last = json!({"epoch": 2, "by": "client"});
    reported(&falsified(|page| page.told.push(event(9, "client.closed", &last, None))), "sockets", "agent holds 1");
}

#[test]
fn closes_that_were_not_promised_are_reported() {
    let mut book = sound();
    book.promises.pipes = true;
    reported(&check(&book), "sockets", "was closed");
    let close = |code| falsified(|page| page.pipes[0].ended.as_mut().unwrap().1 = closed(code));
    reported(&close(3509), "sockets", "in a drain");
    reported(&close(3504), "sockets", "for good");
    reported(&falsified(|page| page.links[0].warned = false), "sockets", "not told node.draining");
}

#[test]
fn frames_come_in_order_once_and_from_somebody() {
    reported(&falsified(|page| page.pipes[0].got.swap(0, 1)), "frames", "after 2");
    reported(&falsified(|page| page.pipes[0].got.insert(1, Frame::Of(1, 0, 1))), "frames", "twice");
    reported(&falsified(|page| page.pipes[0].got.push(Frame::Of(1, 0, 9))), "frames", "never sent");
    reported(&falsified(|page| page.pipes[0].got.push(Frame::Odd("?".into()))), "frames", "no agent sends");
    reported(&falsified(|page| page.rooms = vec!["attic".into()]), "frames", "another room");
    reported(&falsified(|page| page.pipes[1].got.push(Frame::Of(0, 1, 4))), "frames", "its own");
    assert_eq!(falsified(|page| page.pipes[1].got[0] = Frame::Of(1, 0, 1)).frames_lost, 0);
    assert_eq!(
        falsified(|page| drop(page.pipes[0].got.splice(0..2, [Frame::Of(1, 0, 1), Frame::Of(1, 0, 3)]))).frames_lost,
        1
    );
    reported(&falsified(|page| page.odd.push("strange".into())), "odd", "strange");
}
