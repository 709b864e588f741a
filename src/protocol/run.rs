//! Runs: data frames as they stand on the wire towards clients, encoded once and shared by all receivers.
//!
//! A server's frames are unmasked, so every receiver's bytes are the same. Frames that were sent in one burst stay
//! one run from the sender's socket to the receivers', through the broker too: one reference count a receiver, one
//! copy into one write.

use bytes::{BufMut, Bytes, BytesMut};

use super::FrameKind;

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
/// What memory is not asked for less than.
const SMALLEST: usize = 64;

/// One or more encoded data frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    wire: Bytes,
    frames: u32,
    payload: usize,
}

/// Bytes that are not a whole number of unfragmented, unmasked data frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a run of whole data frames")]
pub struct BadRun;

impl Run {
    /// A run of one frame.
    #[must_use]
    pub fn of(kind: FrameKind, payload: &[u8]) -> Self {
        let mut builder = RunBuilder::default();
        builder.push(kind, payload);
        builder.finish()
    }

    /// Reads bytes that another node wrote. Nothing is copied.
    ///
    /// # Errors
    /// [`BadRun`] when they are anything but whole data frames.
    pub fn from_wire(wire: Bytes) -> Result<Self, BadRun> {
        let (mut frames, mut payload, mut rest) = (0, 0, &wire[..]);
        while !rest.is_empty() {
            let head = Head::read(rest).ok_or(BadRun)?;
            rest = rest.get(head.end()?..).ok_or(BadRun)?;
            frames += 1;
            payload += head.payload;
        }
        Ok(Self { wire, frames, payload })
    }

    /// The bytes to write.
    #[must_use]
    pub fn wire(&self) -> &Bytes {
        &self.wire
    }

    /// How many frames.
    #[must_use]
    pub fn frames(&self) -> u64 {
        u64::from(self.frames)
    }

    /// Bytes of payload in them.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payload as u64
    }

    /// How many bytes it holds in a queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.wire.len()
    }

    /// Whether there is no frame in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    /// Splits off the longest prefix of whole frames that has at most `bytes` bytes; `self` keeps the rest.
    #[must_use]
    pub fn split_fitting(&mut self, bytes: usize) -> Self {
        self.split_while(|end, _| end <= bytes)
    }

    /// Splits off the first `count` frames, or all that there are; `self` keeps the rest.
    #[must_use]
    pub fn split_frames(&mut self, count: u64) -> Self {
        self.split_while(|_, frames| frames <= count)
    }

    /// Splits off the frames for which `fits` holds of where each ends, in bytes and as a number of frames.
    fn split_while(&mut self, fits: impl Fn(usize, u64) -> bool) -> Self {
        let (mut at, mut frames, mut payload) = (0, 0, 0);
        while let Some(head) = Head::read(&self.wire[at..]) {
            let Ok(end) = head.end() else { break };
            if !fits(at + end, u64::from(frames) + 1) {
                break;
            }
            at += end;
            frames += 1;
            payload += head.payload;
        }
        self.frames -= frames;
        self.payload -= payload;
        Self { wire: self.wire.split_to(at), frames, payload }
    }

    /// Splits off the first frame.
    #[must_use]
    pub fn split_first(&mut self) -> Self {
        let first = Head::read(&self.wire).and_then(|head| head.end().ok());
        self.split_fitting(first.unwrap_or(self.wire.len()))
    }
}

/// The most bytes that stand before a frame's payload.
const LONGEST_HEAD: usize = 10;

/// Encodes frames one behind the other.
#[derive(Debug, Default)]
pub struct RunBuilder {
    wire: BytesMut,
    frames: u32,
    payload: usize,
}

impl RunBuilder {
    /// Makes room for a frame and so many bytes of others, if nothing is encoded so far.
    pub fn expect(&mut self, payload: usize, others: usize) {
        if self.wire.is_empty() {
            self.wire.reserve(payload + LONGEST_HEAD + others);
        }
    }

    /// Whether a frame with so much payload may be more than fits in `bytes` bytes with all that is encoded.
    #[must_use]
    pub fn is_full(&self, payload: usize, bytes: usize) -> bool {
        self.wire.len() + payload + LONGEST_HEAD > bytes
    }

    /// Adds one frame: the only copy of its payload on the way to all local receivers.
    pub fn push(&mut self, kind: FrameKind, payload: &[u8]) {
        self.wire.reserve(payload.len() + LONGEST_HEAD);
        self.wire.put_u8(if kind == FrameKind::Text { TEXT } else { BINARY });
        match payload.len() {
            n @ 0..=125 => self.wire.put_u8(n as u8),
            n @ 126..=0xFFFF => {
                self.wire.put_u8(126);
                self.wire.put_u16(n as u16);
            }
            n => {
                self.wire.put_u8(127);
                self.wire.put_u64(n as u64);
            }
        }
        self.wire.put_slice(payload);
        self.frames += 1;
        self.payload += payload.len();
    }

    /// Whether nothing is encoded so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    /// The run, leaving the builder empty. It takes no more than twice the memory that it is counted as.
    #[must_use]
    pub fn finish(&mut self) -> Run {
        let Self { wire, frames, payload } = std::mem::take(self);
        let roomy = wire.capacity() > 2 * wire.len().max(SMALLEST);
        Run { wire: if roomy { Bytes::copy_from_slice(&wire) } else { wire.freeze() }, frames, payload }
    }
}

/// The header of an encoded frame.
struct Head {
    length: usize,
    payload: usize,
}

impl Head {
    fn read(wire: &[u8]) -> Option<Self> {
        let (&[op, seven], rest) = wire.split_first_chunk::<2>()?;
        if op != TEXT && op != BINARY {
            return None;
        }
        match seven {
            n @ 0..=125 => Some(Self { length: 2, payload: n.into() }),
            126 => Some(Self { length: 4, payload: u16::from_be_bytes(*rest.first_chunk()?).into() }),
            127 => Some(Self { length: 10, payload: u64::from_be_bytes(*rest.first_chunk()?).try_into().ok()? }),
            _ => None,
        }
    }

    fn end(&self) -> Result<usize, BadRun> {
        self.length.checked_add(self.payload).ok_or(BadRun)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let size = prop_oneof![0..200usize, Just(125), Just(126), Just(65_535), Just(65_536)];
        prop::collection::vec(size.prop_map(|n| vec![7u8; n]), 1..8)
    }

    #[test]
    fn a_run_has_no_room_to_spare() {
        for (expected, frames) in [(48 << 10, 1), (48 << 10, 500), (0, 1), (0, 700)] {
            let mut builder = RunBuilder::default();
            for _ in 0..frames {
                builder.expect(64, expected);
                builder.push(FrameKind::Text, &[7; 64]);
            }
            let run = builder.finish();
            assert_eq!((run.frames(), run.len()), (frames, frames as usize * 66));
            let room = run.wire.try_into_mut().unwrap().capacity();
            assert!(room <= 2 * 66 * frames as usize, "{room} bytes for {frames} frames");
        }
    }

    proptest! {
        #[test]
        fn another_node_reads_what_this_one_wrote(frames in frames()) {
            let mut builder = RunBuilder::default();
            for frame in &frames {
                builder.push(FrameKind::Binary, frame);
            }
            let run = builder.finish();
            prop_assert_eq!(run.frames(), frames.len() as u64);
            prop_assert_eq!(run.payload_bytes(), frames.iter().map(Vec::len).sum::<usize>() as u64);
            prop_assert_eq!(Run::from_wire(run.wire().clone()), Ok(run));
        }

        #[test]
        fn splitting_loses_nothing(frames in frames(), at in 0..140_000usize) {
            let mut builder = RunBuilder::default();
            for frame in &frames {
                builder.push(FrameKind::Text, frame);
            }
            let whole = builder.finish();
            let mut rest = whole.clone();
            let front = rest.split_fitting(at);
            prop_assert!(front.len() <= at);
            prop_assert_eq!(front.frames() + rest.frames(), whole.frames());
            prop_assert_eq!([&front.wire()[..], &rest.wire()[..]].concat(), whole.wire().to_vec());
            if !rest.is_empty() {
                prop_assert!(front.len() + rest.split_first().len() > at);
            }
        }

        #[test]
        fn splitting_counts_frames(frames in frames(), count in 0..10u64) {
            let mut builder = RunBuilder::default();
            for frame in &frames {
                builder.push(FrameKind::Text, frame);
            }
            let whole = builder.finish();
            let mut rest = whole.clone();
            let front = rest.split_frames(count);
            prop_assert_eq!(front.frames(), count.min(whole.frames()));
            prop_assert_eq!(front.frames() + rest.frames(), whole.frames());
            prop_assert_eq!(front.payload_bytes() + rest.payload_bytes(), whole.payload_bytes());
            for part in [&front, &rest] {
                prop_assert_eq!(Run::from_wire(part.wire().clone()), Ok(part.clone()));
            }
            prop_assert_eq!([&front.wire()[..], &rest.wire()[..]].concat(), whole.wire().to_vec());
        }

        #[test]
        fn noise_is_refused_or_whole(noise: Vec<u8>) {
            if let Ok(run) = Run::from_wire(Bytes::from(noise)) {
                let mut rest = run.clone();
                prop_assert_eq!(rest.split_fitting(run.len()).frames(), run.frames());
            }
        }
    }
}
