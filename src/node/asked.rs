//! Commands that other nodes asked for lately: the same mail may come again, because it or its reply was lost.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use crate::protocol::{NodeId, Reply};

/// How many are remembered at most. Beyond, askers are told to wait.
const MOST: usize = 65_536;

/// An ask, by who asks and its number there.
type Ask = (NodeId, u64);

/// What there is to do with an ask.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// It is the first: carry it out.
    First,
    /// It is being carried out: its reply will come.
    Running,
    /// It was carried out: send this again.
    Replied(Reply),
    /// Too many are remembered.
    TooMany,
}

/// The asks of other nodes, for as long as they may come again.
#[derive(Default)]
pub(super) struct Asked(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    replies: HashMap<Ask, Option<Reply>>,
    order: VecDeque<(Instant, Ask)>,
}

impl Asked {
    /// An ask arrived; none comes again after `memory`.
    pub(super) fn hear(&self, from: NodeId, number: u64, memory: Duration) -> Heard {
        let now = Instant::now();
        let mut inside = self.0.lock();
        while let Some((_, old)) = inside.order.front().filter(|(at, _)| now.duration_since(*at) > memory).copied() {
            inside.order.pop_front();
            inside.replies.remove(&old);
        }
        let full = inside.order.len() >= MOST;
        match inside.replies.entry((from, number)) {
            Entry::Occupied(known) => known.get().clone().map_or(Heard::Running, Heard::Replied),
            Entry::Vacant(_) if full => Heard::TooMany,
            Entry::Vacant(place) => {
                place.insert(None);
                inside.order.push_back((now, (from, number)));
                Heard::First
            }
        }
    }

    /// It is answered with this.
    pub(super) fn replied(&self, from: NodeId, number: u64, reply: &Reply) {
        if let Some(known) = self.0.lock().replies.get_mut(&(from, number)) {
            *known = Some(reply.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_ask_is_carried_out_once() {
        let (asked, one, two) = (Asked::default(), NodeId::fresh(), NodeId::fresh());
        let memory = Duration::from_secs(10);
        assert_eq!(asked.hear(one, 7, memory), Heard::First);
        assert_eq!(asked.hear(one, 7, memory), Heard::Running);
        assert_eq!(asked.hear(two, 7, memory), Heard::First, "another node's number is another ask");
        asked.replied(one, 7, &Reply::NotHere);
        asked.replied(one, 8, &Reply::NotHere);
        assert_eq!(asked.hear(one, 7, memory), Heard::Replied(Reply::NotHere));
        assert_eq!(asked.hear(one, 8, memory), Heard::First, "what was never asked was never answered");
        tokio::time::advance(memory * 2).await;
        assert_eq!(asked.hear(one, 9, memory), Heard::First);
        assert_eq!(asked.0.lock().replies.len(), 1, "what can't come again is forgotten");
        for number in 10..10 + MOST as u64 {
            asked.hear(one, number, memory);
        }
        assert_eq!(asked.hear(one, u64::MAX, memory), Heard::TooMany);
        assert_eq!(asked.hear(one, 9, memory), Heard::Running);
    }
}
