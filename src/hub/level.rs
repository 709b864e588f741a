//! How an outbox stands, and what it has lost.

use crate::protocol::Run;

/// Frames that were not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Dropped {
    /// How many.
    pub frames: u64,
    /// Their payload, in bytes.
    pub bytes: u64,
    /// How many marks were dropped with them; not told when there was none.
    #[serde(skip_serializing_if = "is_zero")]
    pub marks: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Dropped {
    /// None.
    pub const NOTHING: Self = Self { frames: 0, bytes: 0, marks: 0 };

    pub(super) fn add(&mut self, run: &Run) {
        self.frames += run.frames();
        self.bytes += run.payload_bytes();
    }

    /// What came on top since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            frames: self.frames - before.frames,
            bytes: self.bytes - before.bytes,
            marks: self.marks - before.marks,
        }
    }
}

/// How an outbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Level {
    /// Frames taken for writing since the socket opened: its position.
    pub taken_frames: u64,
    /// Their payload, in bytes.
    pub taken_bytes: u64,
    /// Frames that wait.
    pub queued_frames: u64,
    /// Encoded bytes that wait, those being written included, and marks.
    pub queued_bytes: usize,
    /// What marks hold of them.
    pub mark_bytes: usize,
    /// The bound.
    pub limit: usize,
    /// Frames that were dropped since the socket opened because the client was too slow.
    pub dropped: Dropped,
    /// Frames that were dropped since the socket opened because delivery was paused so.
    pub dropped_in_pauses: Dropped,
    /// Whether the queue passed half of its bound and has not come down to an eighth since.
    pub lagging: bool,
    /// Whether the bound was hit under [`Slow::Close`](crate::protocol::Slow::Close): the socket must be closed.
    pub overflowed: bool,
}

/// What the end of a pause found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    /// How many frames stand before the first that had to wait.
    pub position: u64,
    /// How many waited.
    pub waited: u64,
    /// How many were dropped in the pause.
    pub dropped: u64,
}
