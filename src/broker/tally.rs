//! How a history that many write stood when an entry was added to it.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// What stands before each payload of such a history. Whoever adds the entry can't know it: the step that does writes
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// What all entries weigh up to and including this one, since the history began.
    pub total: u64,
    /// Random, and this history's own: one that begins anew, because all was lost, has another.
    pub era: u32,
    /// Milliseconds since 1970, by the broker's clock.
    pub at: u64,
}

impl Tally {
    /// How many bytes it takes.
    pub const LENGTH: usize = 8 + 4 + 8;

    /// Takes it off an entry's payload.
    #[must_use]
    pub fn split(mut payload: Bytes) -> Option<(Self, Bytes)> {
        if payload.len() < Self::LENGTH {
            return None;
        }
        let (total, era, at) = (payload.get_u64(), payload.get_u32(), payload.get_u64());
        Some((Self { total, era, at }, payload))
    }

    /// Puts it before a payload.
    #[must_use]
    pub fn join(self, payload: &[u8]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::LENGTH + payload.len());
        bytes.put_u64(self.total);
        bytes.put_u32(self.era);
        bytes.put_u64(self.at);
        bytes.put_slice(payload);
        bytes.freeze()
    }
}

/// One of the many who write a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Its own name.
    pub name: String,
    /// Random, and this contribution's own: made again, because the answer was lost, it adds nothing.
    pub batch: u64,
    /// What it has contributed in all, with this: kept for who asks for it.
    pub total: u64,
}

/// Something to be added to a history that many write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What it adds to the total.
    pub weight: u64,
    /// What is to be kept.
    pub payload: Bytes,
}
