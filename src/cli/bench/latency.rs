//! When a message was due, carried by the message itself, and how long it then took.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

/// What a stamp begins with, so that it is found whatever stands around it.
const MARK: u8 = b'!';
/// A mark, and nanoseconds in hexadecimal digits: text, since some peers carry nothing else.
const STAMP: usize = 17;
/// Buckets for each doubling: a value is known to 1 %.
const FINE: u32 = 6;
/// Buckets up to 18 minutes.
const BUCKETS: usize = 35 << FINE;

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since this process began to count.
pub(super) fn nanoseconds(at: Instant) -> u64 {
    at.saturating_duration_since(*EPOCH).as_nanos() as u64
}

/// A payload with room for a stamp, where it has so much room.
pub(super) fn payload(size: usize) -> Vec<u8> {
    let mut payload = vec![b'x'; size];
    if size >= STAMP {
        stamp(&mut payload, 0);
    }
    payload
}

/// Writes a stamp to where these bytes begin.
pub(super) fn stamp(bytes: &mut [u8], due: u64) {
    bytes[0] = MARK;
    for (digit, shift) in bytes[1..STAMP].iter_mut().zip((0..16).rev()) {
        *digit = b"0123456789abcdef"[(due >> (shift * 4)) as usize & 0xF];
    }
}

/// Finds the stamps in a stream of bytes.
pub(super) struct Stamps {
    /// How much of each payload follows its stamp.
    padding: usize,
    skip: usize,
    begun: Vec<u8>,
}

impl Stamps {
    pub(super) fn new(payload: usize) -> Self {
        Self { padding: payload.saturating_sub(STAMP), skip: 0, begun: Vec::new() }
    }

    /// Tells each stamp, and how often it came in a row.
    pub(super) fn find(&mut self, bytes: &[u8], mut found: impl FnMut(u64, u64)) {
        let joined;
        let mut rest = bytes;
        if !self.begun.is_empty() {
            joined = [&std::mem::take(&mut self.begun)[..], bytes].concat();
            rest = &joined;
        }
        // Messages that were due together have the same digits: most need not be read.
        let (mut last, mut last_digits): (_, &[u8]) = ((0, 0), &[]);
        loop {
            let step = self.skip.min(rest.len());
            (self.skip, rest) = (self.skip - step, &rest[step..]);
            let Some(at) = rest.iter().position(|byte| *byte == MARK) else { break };
            rest = &rest[at..];
            let Some(digits) = rest.get(1..STAMP) else {
                self.begun = rest.to_vec();
                break;
            };
            if digits == last_digits {
                last.1 += 1;
                (rest, self.skip) = (&rest[STAMP..], self.padding);
                continue;
            }
            let Some(due) = std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok())
            else {
                rest = &rest[1..];
                continue;
            };
            (rest, self.skip) = (&rest[STAMP..], self.padding);
            if last.1 > 0 {
                found(last.0, last.1);
            }
            (last, last_digits) = ((due, 1), digits);
        }
        if last.1 > 0 {
            found(last.0, last.1);
        }
    }
}

/// How long messages took, in buckets, so that millions of them fit.
pub(super) struct Latencies(Vec<AtomicU64>);

impl Latencies {
    pub(super) fn new() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn add(&self, nanoseconds: u64, times: u64) {
        self.0[bucket(nanoseconds)].fetch_add(times, Relaxed);
    }

    pub(super) fn clear(&self) {
        self.0.iter().for_each(|bucket| bucket.store(0, Relaxed));
    }

    /// The microseconds that so many of a thousand messages did not exceed.
    pub(super) fn per_mille(&self, share: u64) -> f64 {
        let all: Vec<u64> = self.0.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let rank = (all.iter().sum::<u64>() * share).div_ceil(1_000).max(1);
        let mut below = 0;
        let found = all.iter().position(|times| {
            below += times;
            below >= rank
        });
        found.map_or(f64::NAN, |bucket| middle(bucket) / 1e3)
    }
}

fn bucket(nanoseconds: u64) -> usize {
    let nanoseconds = nanoseconds.max(1 << FINE);
    let doublings = nanoseconds.ilog2() - FINE;
    let fine = (nanoseconds >> doublings) as usize - (1 << FINE);
    (((doublings as usize) << FINE) + fine).min(BUCKETS - 1)
}

fn middle(bucket: usize) -> f64 {
    let (doublings, fine) = (bucket >> FINE, bucket & ((1 << FINE) - 1));
    let width = (1_u64 << doublings) as f64;
    (fine as f64 + f64::from(1 << FINE) + 0.5) * width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_found_wherever_the_bytes_are_cut() {
        let mut wire = b"head!of!something ".to_vec();
        for due in [7, 7, 7, 0xFFFF_0000_1234_5678, 7] {
            let mut payload = payload(40);
            stamp(&mut payload, due);
            wire.extend(payload);
            wire.extend(b"\x82\x7e!");
        }
        for step in [1, 2, 16, 17, 18, 1_000] {
            let (mut stamps, mut seen) = (Stamps::new(40), Vec::new());
            for part in wire.chunks(step) {
                stamps.find(part, |due, times| seen.extend((0..times).map(|_| due)));
            }
            assert_eq!(seen, [7, 7, 7, 0xFFFF_0000_1234_5678, 7], "in steps of {step}");
        }
    }

    #[test]
    fn a_share_of_the_latencies_is_known_to_a_hundredth() {
        let latencies = Latencies::new();
        (1..=10_000).for_each(|n| latencies.add(n * 1_000, 3));
        for (share, wanted) in [(500, 5_000.0), (990, 9_900.0), (999, 9_990.0)] {
            let found = latencies.per_mille(share);
            assert!((found / wanted - 1.0).abs() < 0.01, "{found} instead of {wanted}");
        }
        latencies.clear();
        assert!(latencies.per_mille(500).is_nan());
        assert!(
            (0..40).all(|shift| (middle(bucket(3 << shift)) / (3_u64 << shift).max(64) as f64 - 1.0).abs() < 0.02)
        );
    }
}
