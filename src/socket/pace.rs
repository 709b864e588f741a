//! Pace: how fast a peer is read. Who sends more than its rate is read more slowly, and TCP holds it back.

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::{node::now_text, protocol::Rate};

/// Who is held back all the time is told of at most this often.
const QUIET: Duration = Duration::from_secs(1);

/// How many tokens a bucket gets a second, and how many it has room for.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    pub(super) per_second: f64,
    pub(super) burst: f64,
}

/// Tokens that come back at a steady rate, up to a burst; the rate is kept by whoever has the bucket. It may go into debt.
pub(super) struct Bucket {
    tokens: f64,
    /// When it had so many. The clock is looked at only when they are spent: it costs more than counting.
    at: Instant,
}

impl Bucket {
    pub(super) fn full(flow: Flow) -> Self {
        Self { tokens: flow.burst, at: Instant::now() }
    }

    /// Takes tokens, whether there are so many or not.
    pub(super) fn spend(&mut self, tokens: f64, flow: Flow) {
        if self.tokens < tokens {
            let now = Instant::now();
            let earned = (now - self.at).as_secs_f64() * flow.per_second;
            self.at = now;
            self.give(earned, flow);
        }
        self.tokens -= tokens;
    }

    /// Gives tokens, as far as they fit.
    pub(super) fn give(&mut self, tokens: f64, flow: Flow) {
        self.tokens = (self.tokens + tokens).min(flow.burst);
    }

    /// When it is out of debt; `None` when it is already.
    pub(super) fn debt_until(&self, flow: Flow) -> Option<Instant> {
        if self.tokens >= 0.0 {
            return None;
        }
        // Whoever waits must not wake a moment too early.
        let seconds = -self.tokens / flow.per_second + 1e-9;
        Some(self.at + Duration::from_secs_f64(seconds)).filter(|at| *at > Instant::now())
    }
}

/// A bucket of one second each for frames and for bytes. Most peers have no limits, and are not to cost more for that.
pub(super) struct Pace(Option<Box<Limits>>);

struct Limits {
    rate: Rate,
    frames: Option<(Bucket, Flow)>,
    bytes: Option<(Bucket, Flow)>,
    /// Since when the peer is held back, as events say it; it is while each time that it is read ends in debt.
    held_since: Option<String>,
    quiet_until: Option<Instant>,
}

impl Pace {
    pub(super) fn new(rate: Option<Rate>) -> Self {
        let rate = rate.unwrap_or_default();
        let bucket = |limit: Option<f64>| {
            let flow = limit.map(|limit| Flow { per_second: limit, burst: limit.max(1.0) });
            flow.map(|flow| (Bucket::full(flow), flow))
        };
        let (frames, bytes) = (bucket(rate.messages_per_second), bucket(rate.bytes_per_second));
        let limits = || Box::new(Limits { rate, frames, bytes, held_since: None, quiet_until: None });
        Self((rate != Rate::default()).then(limits))
    }

    /// What it keeps to.
    pub(super) fn rate(&self) -> Rate {
        self.0.as_ref().map_or_else(Rate::default, |limits| limits.rate)
    }

    /// Whether there is anything to keep.
    pub(super) fn limited(&self) -> bool {
        self.0.is_some()
    }

    /// Counts what was read.
    pub(super) fn spend(&mut self, frames: u64, bytes: u64) {
        let Some(limits) = &mut self.0 else { return };
        for (bucket, spent) in [(&mut limits.frames, frames), (&mut limits.bytes, bytes)] {
            if let Some((bucket, flow)) = bucket {
                bucket.spend(spent as f64, *flow);
            }
        }
    }

    /// When the next frame may be read; `None` for now.
    pub(super) fn wait(&self) -> Option<Instant> {
        self.0.as_ref().and_then(|limits| limits.wait())
    }

    /// What is to be told of the peer being held back, after it was read: when that begins, and now and then while it
    /// goes on.
    pub(super) fn news(&mut self) -> Option<Value> {
        self.0.as_mut().and_then(|limits| limits.news())
    }
}

impl Limits {
    fn wait(&self) -> Option<Instant> {
        let buckets = [&self.frames, &self.bytes].into_iter().flatten();
        buckets.filter_map(|(bucket, flow)| bucket.debt_until(*flow)).max()
    }

    fn news(&mut self) -> Option<Value> {
        if self.wait().is_none() {
            self.held_since = None;
            return None;
        }
        let (now, since) = (Instant::now(), self.held_since.get_or_insert_with(now_text));
        if self.quiet_until.is_some_and(|at| at > now) {
            return None;
        }
        self.quiet_until = Some(now + QUIET);
        let Rate { messages_per_second, bytes_per_second } = self.rate;
        Some(json!({
            "limit": "rate", "messages_per_second": messages_per_second, "bytes_per_second": bytes_per_second,
            "since": since,
        }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    fn pace(messages: Option<f64>, bytes: Option<f64>) -> Pace {
        Pace::new(Some(Rate { messages_per_second: messages, bytes_per_second: bytes }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_in_the_long_run() {
        for (messages, bytes, frames) in [(Some(100.0), None, 1_000..1_200), (Some(100.0), Some(500.0), 500..600)] {
            let mut pace = pace(messages, bytes);
            let (start, mut read) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_secs(10) {
                match pace.wait() {
                    Some(at) => sleep_until(at).await,
                    None => {
                        pace.spend(7, 70);
                        read += 7;
                        advance(Duration::from_micros(10)).await;
                    }
                }
            }
            assert!(frames.contains(&read), "{read}");
        }
        assert!(pace(None, None).wait().is_none() && !pace(None, None).limited());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_held_back_is_told_of_at_once_and_then_once_a_second() {
        let mut pace = pace(Some(10.0), None);
        for _ in 0..10 {
            pace.spend(1, 5);
            assert_eq!(pace.news(), None, "within its rate");
        }
        let (start, mut told) = (Instant::now(), Vec::new());
        while start.elapsed() < Duration::from_millis(3_500) {
            pace.spend(1, 5);
            if let Some(news) = pace.news() {
                told.push((start.elapsed().as_secs(), news));
            }
            sleep_until(pace.wait().unwrap()).await;
        }
        assert_eq!(told.iter().map(|(second, _)| *second).collect::<Vec<_>>(), [0, 1, 2, 3], "{told:?}");
        let (_, first) = &told[0];
        assert_eq!((&first["limit"], &first["messages_per_second"]), (&json!("rate"), &json!(10.0)));
        assert_eq!((&first["bytes_per_second"], &told[3].1["since"]), (&json!(null), &first["since"]));
        // It sends less for a while: that is over, and what comes then begins anew.
        advance(Duration::from_secs(5)).await;
        pace.spend(1, 5);
        assert_eq!((pace.news(), &pace.0.as_ref().unwrap().held_since), (None, &None));
        pace.spend(20, 5);
        assert!(pace.news().is_some());
    }
}
