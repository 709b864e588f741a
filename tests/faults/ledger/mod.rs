//! The ledger: what was recorded of a run, held against what is promised. Every violation is a sentence.

mod effects;
mod frames;
mod sockets;
mod story;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;

use super::record::{Book, Page};

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: &'static str,
    pub pair: String,
    pub what: String,
}

/// What was found in a book.
#[derive(Debug, Default)]
pub struct Findings {
    pub violations: Vec<Violation>,
    /// Events that were lost and not announced, and answered commands without their effect.
    pub lost: u64,
    /// Events told twice, and commands with two effects.
    pub repeated: u64,
    pub gaps: u64,
    pub announced: u64,
    pub frames: u64,
    /// Frames that a receiver missed between two that it got on the same sockets.
    pub frames_lost: u64,
    pub events: u64,
    pub commands: u64,
    /// Commands of which nobody ever learned whether they took effect.
    pub unknown: u64,
    /// Client sockets that ended against their agent's wish, by code (0 where there was none).
    pub closes: BTreeMap<u16, u64>,
}

impl Findings {
    fn wrong(&mut self, rule: &'static str, page: &Page, what: String) {
        self.violations.push(Violation { rule, pair: page.pair.clone(), what });
    }
}

/// Checks everything that was recorded.
pub fn check(book: &Book) -> Findings {
    let mut found = Findings::default();
    for page in &book.pages {
        story::check(book, page, &mut found);
        effects::check(book, page, &mut found);
        sockets::check(book, page, &mut found);
        frames::check(book, page, &mut found);
        for odd in &page.odd {
            found.wrong("odd", page, odd.clone());
        }
    }
    found
}

/// The place in the pair's own history that an event's cursor names. The rest of a cursor is a place in what is told in
/// its room, which is another when the broker has lost that.
pub fn place_of(params: &Value) -> &str {
    // Version, pair, offset and nonce: 33 bytes, in base64.
    let cursor = params["cursor"].as_str().unwrap_or_default();
    cursor.get(..44).unwrap_or(cursor)
}

/// The end of a cursor, enough to tell it from others.
fn short(cursor: &str) -> &str {
    cursor.get(cursor.len().saturating_sub(18)..).unwrap_or(cursor)
}
