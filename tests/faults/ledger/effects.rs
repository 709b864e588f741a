//! Rule 2, commands: what was answered with a result took effect once, what was refused for good did not, and nothing
//! took effect twice.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{Findings, place_of, short};
use crate::record::{Act, Book, Frame, Ms, Order, Page, said_at};
use crate::support::kind_of;

/// A pushed frame is on its pipe within this, or its pipe has ended.
const ON_THE_WAY: Ms = 10_000;
/// How far the times of one machine's processes may seem apart.
const SLACK: Ms = 1_000;

pub fn check(book: &Book, page: &Page, found: &mut Findings) {
    let mut effects: HashMap<&str, Vec<&Value>> = HashMap::new();
    let mut seen = HashSet::new();
    for params in page.told.iter().chain(page.heard.iter().map(|heard| &heard.params)) {
        if let Some(key) = params["cause"]["key"].as_str()
            && seen.insert(place_of(params))
        {
            effects.entry(key).or_default().push(params);
        }
    }
    let mut pushed: HashMap<&str, u64> = HashMap::new();
    for frame in page.pipes.iter().flat_map(|pipe| &pipe.got) {
        if let Frame::Pushed(text) = frame {
            *pushed.entry(text).or_default() += 1;
        }
    }
    for order in &page.orders {
        found.commands += 1;
        let about = format!("{:?} {}, sent {} times", order.act, order.key, order.attempts);
        answers(book, page, order, &about, found);
        let times = match order.act.effect() {
            Some(kind) => {
                let raised = effects.remove(order.key.as_str()).unwrap_or_default();
                if let Some(other) = raised.iter().find(|params| kind_of(params) != kind) {
                    found.wrong("effects", page, format!("{about}: its effect is {other}"));
                }
                raised.len() as u64
            }
            None => pushed.remove(order.params["text"].as_str().unwrap_or_default()).unwrap_or(0),
        };
        if times > 1 && !forgotten(book, page, order) {
            found.repeated += 1;
            found.wrong("effects", page, format!("{about}: took effect {times} times"));
        }
        match &order.answer {
            Some((_, Err(error))) if times > 0 => {
                found.wrong("effects", page, format!("{about}: refused for good, and took effect: {error}"));
            }
            Some((at, Ok(result))) if times == 0 && !excused(page, order, *at) => {
                found.lost += 1;
                found.wrong("effects", page, format!("{about}: answered with {result}, and took no effect"));
            }
            _ => {}
        }
    }
    for (key, raised) in effects {
        if key != "the-end" {
            found.wrong(
                "effects",
                page,
                format!("{} has a key that nobody used: {key}", short(&raised[0].to_string())),
            );
        }
    }
    for text in pushed.into_keys() {
        found.wrong("effects", page, format!("{text:?} came out of the pipe, and nobody pushed it there"));
    }
}

/// Whether the broker lost everything, this command's key too, while the command was open: then it may have taken
/// effect before and after.
fn forgotten(book: &Book, page: &Page, order: &Order) -> bool {
    let answered = order.answer.as_ref().map_or(Ms::MAX, |(at, _)| *at);
    let span = order.first_sent..=answered.saturating_add(ON_THE_WAY);
    !book.promises.histories
        && page.heard.iter().any(|heard| kind_of(&heard.params) == "gap" && span.contains(&heard.when))
}

fn answers(book: &Book, page: &Page, order: &Order, about: &str, found: &mut Findings) {
    match &order.answer {
        None if order.given_up && !book.promises.answers => found.unknown += 1,
        None => {
            found.unknown += u64::from(order.given_up);
            let last = &order.unsure;
            found.wrong("effects", page, format!("{about}: never answered for good, last {last:?}"));
        }
        // Every pair lives until the end of a run: only a broker that forgot everything may not know it.
        Some((_, Err(error))) if book.promises.histories => {
            found.wrong("effects", page, format!("{about}: refused for good: {error}"));
        }
        Some((_, Ok(first))) => {
            if let Some(other) = order.again.iter().find(|again| *again != first) {
                found.wrong("effects", page, format!("{about}: answered with {first}, and later with {other}"));
            }
        }
        Some(_) => {}
    }
}

/// From when on a pushed frame may be written: in a pipe that was paused before, not before that is over.
fn released(page: &Page, order: &Order, answered: Ms) -> Ms {
    let stops = |other: &&Order| matches!(other.act, Act::Pause | Act::Resume);
    let at = page.orders.iter().position(|other| other.key == order.key).unwrap_or(page.orders.len());
    match page.orders[..at].iter().rev().find(stops) {
        Some(before) if before.act == Act::Pause => {
            let resumed = page.orders[at..].iter().find(|other| other.act == Act::Resume);
            resumed.and_then(|resume| resume.answer.as_ref()).map_or(Ms::MAX, |(at, _)| *at)
        }
        _ => answered,
    }
}

/// Whether an effect need not be seen: its event may lie in an announced gap, its pipe may have ended before the
/// frame was written.
fn excused(page: &Page, order: &Order, answered: Ms) -> bool {
    if order.act == Act::Push {
        let released = released(page, order, answered);
        return page.pipes.iter().any(|pipe| {
            let ended = pipe.ended.as_ref().is_some_and(|(at, ..)| *at <= released.saturating_add(ON_THE_WAY));
            let there = pipe.ended.as_ref().is_none_or(|(at, ..)| *at + SLACK >= order.first_sent);
            ended && there && pipe.opened <= answered
        });
    }
    // A gap covers the time between the event that was heard before it and the one after.
    let mut before = 0;
    let mut at = page.heard.iter().peekable();
    let heard_gap = loop {
        let Some(heard) = at.next() else { break false };
        if kind_of(&heard.params) == "gap" {
            let after = at.clone().find(|next| kind_of(&next.params) != "gap").map_or(Ms::MAX, |next| next.said);
            if before <= answered + SLACK && after.saturating_add(SLACK) >= order.first_sent {
                break true;
            }
        } else {
            before = heard.said;
        }
    };
    let mut before = 0;
    heard_gap
        || page.told.iter().enumerate().any(|(at, params)| {
            if kind_of(params) != "gap" {
                before = said_at(params);
                return false;
            }
            let after = page.told[at..].iter().find(|next| kind_of(next) != "gap").map_or(Ms::MAX, said_at);
            before <= answered + SLACK && after.saturating_add(SLACK) >= order.first_sent
        })
}
