//! Histories that many write.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::store::{Contributed, History, Store, Timed, TopicOrder};
use crate::{
    broker::{Entry, Keep, LEFT_ALONE, Share, Tally, Writer},
    protocol::{Position, Topic},
};

impl Store {
    /// Adds shares, unless they were added before; the last one's position, and what was added.
    pub(super) fn contribute(
        &mut self,
        topic: &Topic,
        writer: Option<&Writer>,
        shares: &[Share],
        keep: &Keep,
    ) -> (Position, Vec<Entry>) {
        self.expire(2);
        let key = |writer: &Writer| (TopicOrder(topic.clone()), writer.name.clone());
        let known = writer.and_then(|writer| Some((writer, &self.writers.get(&key(writer))?.value)));
        if let Some((_, known)) = known.filter(|(writer, known)| writer.batch == known.batch) {
            return (known.last, Vec::new());
        }
        let now = Instant::now();
        self.forget_history_if_over(topic, now);
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let history = &mut self
            .histories
            .entry(topic.clone())
            .or_insert_with(|| Box::new(Timed::new(History::default())))
            .value;
        let (mut previous, mut offset) = (history.head(), history.head().offset);
        let last = history.entries.back().and_then(|(_, entry)| Tally::split(entry.payload.clone()));
        let at = clock.as_millis() as u64;
        let mut tally = last.map_or_else(
            || {
                // So its places come after those of one that was there before, in which somebody may still stand.
                offset = clock.as_micros() as u64;
                Tally { total: 0, era: rand::random(), at }
            },
            |(last, _)| Tally { at, ..last },
        );
        let batch = writer.map_or_else(rand::random, |writer| writer.batch);
        let mut added = Vec::with_capacity(shares.len());
        for (nonce, share) in (0..).map(|at| batch.wrapping_add(at)).zip(shares) {
            offset += 1;
            tally.total += share.weight;
            let position = Position { offset, nonce };
            let entry = Entry { position, previous, payload: tally.join(&share.payload) };
            previous = position;
            history.entries.push_back((now, entry.clone()));
            added.push(entry);
        }
        history.trim_by_weight(now, keep, tally.total);
        let until = now + keep.age.max(LEFT_ALONE);
        self.keep_history(topic, Some(until));
        if let Some(writer) = writer {
            let said = Contributed { batch, last: previous, total: writer.total };
            self.keep_writer(key(writer), said, until);
        }
        (previous, added)
    }

    pub(super) fn contributed(&self, topic: &Topic, writer: &str) -> Option<u64> {
        let known = self.writers.get(&(TopicOrder(topic.clone()), writer.to_owned()))?;
        (!known.is_over(Instant::now())).then_some(known.value.total)
    }

    pub(super) fn latest(&mut self, topic: &Topic, before: Option<Position>, limit: usize) -> Vec<Entry> {
        self.forget_history_if_over(topic, Instant::now());
        let Some(history) = self.histories.get(topic).map(|history| &history.value) else { return Vec::new() };
        let end = before.map_or(history.entries.len(), |before| history.above(before.offset.saturating_sub(1)));
        history.entries.range(..end).rev().take(limit).map(|(_, entry)| entry.clone()).collect()
    }
}

impl History {
    fn trim_by_weight(&mut self, now: Instant, keep: &Keep, total: u64) {
        while self.entries.len() > 1
            && let Some((since, oldest)) = self.entries.front()
        {
            let until = Tally::split(oldest.payload.clone()).map_or(0, |(tally, _)| tally.total);
            if total - until < keep.most && now.duration_since(*since) < keep.age {
                break;
            }
            self.entries.pop_front();
        }
    }
}
