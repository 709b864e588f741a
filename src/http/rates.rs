//! Rates: how often each of very many may do something.

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    num::NonZeroU32,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use governor::{Quota, RateLimiter, clock::Clock, state::keyed::DashMapStateStore};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How many seconds' worth may be used at once.
const BURST: u32 = 2;
/// So many are told apart, and no more: all others share one bucket. Only those that asked within the last moments
/// count, so it takes an attack to come here.
const MOST: usize = 65_536;
/// After so many uses it is looked for buckets that are full again: nobody need remember those.
const USES: usize = 1_024;
/// While some share a bucket it is looked at least so often, whoever asks.
const SOON: Duration = Duration::from_secs(1);

/// The bucket of those who are too many to be told apart.
const CROWD: u64 = 0;

/// Time as tokio tells it, so that a test can stop it.
struct TokioClock;

impl Clock for TokioClock {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        Instant::now().into_std()
    }
}

/// A bucket for each of those who do something.
pub(super) struct Rates {
    /// By a hash of who it is: what a stranger calls itself takes no place here.
    buckets: RateLimiter<u64, DashMapStateStore<u64>, TokioClock>,
    burst: NonZeroU32,
    hasher: RandomState,
    uses: AtomicUsize,
    crowded: AtomicBool,
    looked: Mutex<Instant>,
}

impl Rates {
    /// So often each second, and at least `burst` at once.
    pub(super) fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let burst = burst.max(per_second.saturating_mul(NonZeroU32::MIN.saturating_add(BURST - 1)));
        let quota = Quota::per_second(per_second).allow_burst(burst);
        Self {
            buckets: RateLimiter::new(quota, DashMapStateStore::default(), TokioClock),
            burst,
            hasher: RandomState::new(),
            uses: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
            looked: Mutex::new(Instant::now()),
        }
    }

    /// Counts what somebody does; an error is how long it is to wait before it may.
    pub(super) fn spend(&self, who: impl Hash, count: usize) -> Result<(), Duration> {
        let crowded = self.crowded.load(Relaxed);
        if self.uses.fetch_add(1, Relaxed) % USES == USES - 1 || crowded && self.looked.lock().elapsed() >= SOON {
            self.forget();
        }
        let key = if self.crowded.load(Relaxed) { CROWD } else { self.hasher.hash_one(who) };
        let count = u32::try_from(count).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        // More than ever fits would never be let in, however long it waits.
        match self.buckets.check_key_n(&key, count.min(self.burst)) {
            Ok(Err(not_until)) => Err(not_until.wait_time_from(TokioClock.now())),
            _ => Ok(()),
        }
    }

    /// Forgets whose bucket is full again.
    fn forget(&self) {
        *self.looked.lock() = Instant::now();
        self.buckets.retain_recent();
        self.buckets.shrink_to_fit();
        self.crowded.store(self.buckets.len() >= MOST, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn rates(per_second: u32) -> Rates {
        Rates::new(NonZeroU32::new(per_second).unwrap(), NonZeroU32::MIN)
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_for_each_and_told_how_long_to_wait() {
        let rates = rates(10);
        for _ in 0..20 {
            rates.spend("a", 1).unwrap();
        }
        assert_eq!(rates.spend("a", 1), Err(Duration::from_millis(100)));
        assert_eq!(rates.spend("b", 1), Ok(()), "another has a bucket of its own");
        advance(Duration::from_millis(99)).await;
        assert!(rates.spend("a", 1).is_err());
        advance(Duration::from_millis(1)).await;
        rates.spend("a", 1).unwrap();
        assert_eq!(rates.spend("a", 5), Err(Duration::from_millis(500)), "several count as so many");
        advance(Duration::from_millis(500)).await;
        rates.spend("a", 5).unwrap();
        let mut taken = 0;
        for _ in 0..10_000 {
            advance(Duration::from_millis(1)).await;
            taken += usize::from(rates.spend("a", 1).is_ok());
        }
        assert!((100..=101).contains(&taken), "{taken} in ten seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_ever_fits_takes_all_that_there_is() {
        let rates = rates(1);
        rates.spend("a", 1_000).unwrap();
        assert_eq!(rates.spend("a", 1), Err(Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_thousand_addresses_do_not_fill_the_memory() {
        let rates = rates(10);
        for address in 0..100_000_u32 {
            let _ = rates.spend(address, 1);
        }
        assert!(rates.buckets.len() <= MOST + USES, "{} at once", rates.buckets.len());
        assert!(rates.spend("a", 1).is_err(), "who comes then shares the bucket of the crowd");
        // Those that come one after the other are forgotten one after the other.
        advance(Duration::from_secs(2)).await;
        for address in 0..100_000_u32 {
            advance(Duration::from_micros(100)).await;
            rates.spend(address, 1).unwrap();
        }
        assert!(rates.buckets.len() <= 4 * USES, "{} in ten seconds", rates.buckets.len());
    }
}
