//! Rule 1, events: every one once, in order, as it stands in the history; each hole announced at its place.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{Findings, place_of, short};
use crate::record::{Book, Page};
use crate::support::kind_of;

/// The history as a fresh sibling read it: its events, and what was announced as lost before each.
struct History<'p> {
    events: Vec<&'p Value>,
    gaps: Vec<Vec<Option<u64>>>,
    places: HashMap<&'p str, usize>,
}

impl<'p> History<'p> {
    fn of(page: &'p Page) -> Self {
        let mut history = Self { events: Vec::new(), gaps: vec![Vec::new()], places: HashMap::new() };
        let mut before = None;
        for params in &page.told {
            let of_its_room = before.replace(place_of(params)) == Some(place_of(params));
            if kind_of(params) == "gap" && of_its_room {
                continue;
            }
            if kind_of(params) == "gap" {
                history.gaps.last_mut().expect("one before the first event").push(params["data"]["lost"].as_u64());
            } else {
                history.places.insert(place_of(params), history.events.len());
                history.events.push(params);
                history.gaps.push(Vec::new());
            }
        }
        history
    }

    /// How many events lie between the one at `last` (or the beginning) and the one at `at`; what of them was never
    /// kept at all, as announced; `None` for that where nobody knows.
    fn between(&self, last: Option<usize>, at: usize) -> (u64, Option<u64>) {
        let from = last.map_or(0, |last| last + 1);
        let never = self.gaps[from..=at].iter().flatten().copied().try_fold(0, |sum, lost| Some(sum + lost?));
        ((at - from) as u64, never)
    }
}

pub fn check(book: &Book, page: &Page, found: &mut Findings) {
    let history = History::of(page);
    let mut seen = HashSet::new();
    for params in &page.told {
        if kind_of(params) != "gap" && !seen.insert(place_of(params)) {
            found.repeated += 1;
            found.wrong("events", page, format!("the history has {} twice", short(place_of(params))));
        }
    }
    seen.clear();
    // Where the sibling stands in the history; what was announced since; whether it came from one that is lost.
    let (mut last, mut gaps, mut from_lost) = (None, Vec::new(), false);
    // A gap that moves nothing in the pair's own history is one in what is told in its room, and of two in a row one is
    // told: it need not say that something of the pair's is missing, but it may.
    let (mut before, mut owns) = (None, false);
    for heard in page.heard.iter().take(page.settled) {
        let params = &heard.params;
        let of_its_room = before.replace(place_of(params)) == Some(place_of(params));
        if kind_of(params) == "gap" {
            let lost = params["data"]["lost"].as_u64();
            found.gaps += 1;
            found.announced += lost.unwrap_or(0);
            if lost.is_none() && book.promises.histories {
                found.wrong("events", page, format!("a gap without a count, though the history was kept: {params}"));
            }
            gaps.push(lost);
            owns |= !of_its_room;
            continue;
        }
        found.events += 1;
        let cursor = place_of(params);
        let name = format!("{} {}", kind_of(params), short(cursor));
        if !seen.insert(cursor) {
            found.repeated += 1;
            found.wrong("events", page, format!("{name} was told twice"));
            continue;
        }
        let Some(&at) = history.places.get(cursor) else {
            if book.promises.histories {
                found.wrong("events", page, format!("{name} was told and is not in the history: {params}"));
            }
            (from_lost, owns) = (true, false);
            gaps.clear();
            continue;
        };
        let kept = history.events[at];
        let mut same = kept.clone();
        if !book.promises.histories {
            same["cursor"] = params["cursor"].clone();
        }
        if *params != same {
            found.wrong("events", page, format!("{name} was told as {params} and is kept as {kept}"));
        }
        if last.is_some_and(|last| at <= last) {
            found.wrong("events", page, format!("{name} was told after a later one"));
            continue;
        }
        if from_lost {
            if gaps.is_empty() {
                found.lost += 1;
                found.wrong("events", page, format!("before {name} the history changed, and no gap was told"));
            }
        } else {
            let (kept, never) = history.between(last, at);
            if owns || kept > 0 || never != Some(0) {
                hole(page, found, (kept, never), &gaps, &name);
            }
        }
        (last, from_lost, owns) = (Some(at), false, false);
        gaps.clear();
    }
    let missing = history.events.len() - last.map_or(0, |last| last + 1);
    if missing > 0 && !page.heard.is_empty() {
        found.lost += missing as u64;
        found.wrong("events", page, format!("the last {missing} events were never heard by its sibling"));
    }
}

/// Compares a hole with what was announced at its place.
fn hole(page: &Page, found: &mut Findings, hole: (u64, Option<u64>), gaps: &[Option<u64>], name: &str) {
    let (kept, never) = hole;
    let announced = gaps.iter().copied().try_fold(0, |sum, lost| Some(sum + lost?));
    let due = never.map(|never| kept + never);
    match (due, announced) {
        (Some(0), Some(0)) if gaps.is_empty() => {}
        (Some(0), _) => {
            found.wrong("events", page, format!("before {name} gaps {gaps:?} were told, and nothing is missing"));
        }
        _ if gaps.is_empty() => {
            found.lost += due.unwrap_or(kept).max(1);
            found.wrong(
                "events",
                page,
                format!("before {name} {kept} kept and {never:?} other events are missing, and no gap was told"),
            );
        }
        // One that woke from the cursor of a gap may be told the whole gap anew.
        (Some(due), Some(sum)) if sum != due && gaps.last().copied().flatten() != Some(due) => {
            found.wrong("events", page, format!("before {name} gaps {gaps:?} were told, and {due} are missing"));
        }
        _ => {}
    }
}
