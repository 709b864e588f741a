//! Pace: how fast a client is read. Who sends more than its rate is read more slowly, and TCP holds it back.

use tokio::time::{Duration, Instant};

use crate::protocol::Rate;

/// Two token buckets of one second each, for frames and for bytes. They may go into debt by one batch.
pub(super) struct Pace {
    rate: Rate,
    frames: f64,
    bytes: f64,
    at: Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<Rate>) -> Self {
        let rate = rate.unwrap_or_default();
        let full = |limit: Option<f64>| limit.unwrap_or(0.0).max(1.0);
        Self { rate, frames: full(rate.messages_per_second), bytes: full(rate.bytes_per_second), at: Instant::now() }
    }

    /// Whether there is anything to keep.
    pub(super) fn limited(&self) -> bool {
        self.rate != Rate::default()
    }

    /// Counts what was read.
    pub(super) fn spend(&mut self, frames: u64, bytes: u64) {
        let now = Instant::now();
        let passed = (now - self.at).as_secs_f64();
        self.at = now;
        for (tokens, limit, spent) in [
            (&mut self.frames, self.rate.messages_per_second, frames),
            (&mut self.bytes, self.rate.bytes_per_second, bytes),
        ] {
            if let Some(limit) = limit {
                *tokens = (*tokens + passed * limit).min(limit.max(1.0)) - spent as f64;
            }
        }
    }

    /// When the next frame may be read; `None` for now.
    pub(super) fn wait(&self) -> Option<Instant> {
        let debts = [(self.frames, self.rate.messages_per_second), (self.bytes, self.rate.bytes_per_second)];
        let seconds = debts.into_iter().filter_map(|(tokens, limit)| Some(-tokens / limit?)).fold(0.0, f64::max);
        (seconds > 0.0).then(|| self.at + Duration::from_secs_f64(seconds)).filter(|at| *at > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_in_the_long_run() {
        let mut pace = Pace::new(Some(Rate { messages_per_second: Some(100.0), bytes_per_second: None }));
        let (start, mut read) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(10) {
            match pace.wait() {
                Some(at) => sleep_until(at).await,
                None => {
                    pace.spend(7, 1_000_000);
                    read += 7;
                    advance(Duration::from_micros(10)).await;
                }
            }
        }
        assert!((1_000..1_200).contains(&read), "{read}");
    }
}
