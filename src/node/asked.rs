//! What this node carried out lately, so that it is not carried out again: mail of other nodes, which comes again when it
//! or its reply was lost, and commands with keys, whose notes a fail-over of the broker may have lost.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
};

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use crate::protocol::Reply;

/// How many are remembered at most. Beyond, askers are told to wait.
const MOST: usize = 65_536;

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

/// What was asked for, by names of type `K`, for as long as it may come again.
pub(super) struct Asked<K>(Mutex<Inside<K>>);

struct Inside<K> {
    replies: HashMap<K, (Instant, Option<Reply>)>,
    /// All that were heard, the oldest first; one that was forgotten meanwhile and heard again stands here twice.
    order: VecDeque<(Instant, K)>,
}

impl<K> Default for Asked<K> {
    fn default() -> Self {
        Self(Mutex::new(Inside { replies: HashMap::new(), order: VecDeque::new() }))
    }
}

impl<K: Clone + Eq + Hash> Asked<K> {
    /// It is asked for; nothing comes again after `memory`.
    pub(super) fn hear(&self, ask: K, memory: Duration) -> Heard {
        let now = Instant::now();
        let mut inside = self.0.lock();
        while inside.order.front().is_some_and(|(at, _)| now.duration_since(*at) > memory) {
            if let Some((at, old)) = inside.order.pop_front()
                && inside.replies.get(&old).is_some_and(|(heard, _)| *heard == at)
            {
                inside.replies.remove(&old);
            }
        }
        let full = inside.order.len() >= MOST;
        match inside.replies.entry(ask.clone()) {
            Entry::Occupied(known) => known.get().1.clone().map_or(Heard::Running, Heard::Replied),
            Entry::Vacant(_) if full => Heard::TooMany,
            Entry::Vacant(place) => {
                place.insert((now, None));
                inside.order.push_back((now, ask));
                Heard::First
            }
        }
    }

    /// It is answered with this.
    pub(super) fn replied(&self, ask: &K, reply: &Reply) {
        if let Some(known) = self.0.lock().replies.get_mut(ask) {
            known.1 = Some(reply.clone());
        }
    }

    /// It had no effect: it may be asked for again.
    pub(super) fn forget(&self, ask: &K) {
        self.0.lock().replies.remove(ask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::NodeId;

    #[tokio::test(start_paused = true)]
    async fn an_ask_is_carried_out_once() {
        let (asked, one, two) = (Asked::default(), NodeId::fresh(), NodeId::fresh());
        let memory = Duration::from_secs(10);
        assert_eq!(asked.hear((one, 7), memory), Heard::First);
        assert_eq!(asked.hear((one, 7), memory), Heard::Running);
        assert_eq!(asked.hear((two, 7), memory), Heard::First, "another node's number is another ask");
        asked.replied(&(one, 7), &Reply::NotHere);
        asked.replied(&(one, 8), &Reply::NotHere);
        assert_eq!(asked.hear((one, 7), memory), Heard::Replied(Reply::NotHere));
        assert_eq!(asked.hear((one, 8), memory), Heard::First, "what was never asked was never answered");
        asked.forget(&(one, 7));
        assert_eq!(asked.hear((one, 7), memory), Heard::First, "it had no effect");
        tokio::time::advance(memory / 2).await;
        asked.forget(&(one, 7));
        assert_eq!(asked.hear((one, 7), memory), Heard::First);
        tokio::time::advance(memory * 3 / 4).await;
        assert_eq!(asked.hear((two, 8), memory), Heard::First);
        assert_eq!(asked.hear((one, 7), memory), Heard::Running, "it counts from when it was heard again");
        tokio::time::advance(memory * 2).await;
        assert_eq!(asked.hear((one, 9), memory), Heard::First);
        assert_eq!(asked.0.lock().replies.len(), 1, "what can't come again is forgotten");
        for number in 10..10 + MOST as u64 {
            asked.hear((one, number), memory);
        }
        assert_eq!(asked.hear((one, u64::MAX), memory), Heard::TooMany);
        assert_eq!(asked.hear((one, 9), memory), Heard::Running);
    }
}
