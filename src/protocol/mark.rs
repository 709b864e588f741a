//! Marks: commands that stand at a place among frames, without a byte in the pipe.

use std::{io, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Cause, PairId};

/// How long a mark waits for the frame that it is to follow.
pub const MARK_WAIT: Duration = Duration::from_secs(30);

/// What a mark costs in a queue besides its data, in bytes: about what it takes to remember and to tell it.
const OVERHEAD: usize = 128;

/// A mark on its way to the members of a room. It stands between frames; which number that is, each receiver's queue
/// knows when it gets there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Whose client's frames it stands among.
    pub from: PairId,
    /// What is told there.
    pub data: Value,
    /// The command that set it. Told to the siblings of `from`, and to nobody else.
    #[serde(default)]
    pub cause: Option<Cause>,
}

impl Mark {
    /// How many bytes it holds in a queue.
    #[must_use]
    pub fn weight(&self) -> usize {
        let mut counted = Counted(OVERHEAD);
        // Counting does not fail, and a value that can't be written is never told.
        drop(serde_json::to_writer(&mut counted, &self.data));
        counted.0
    }
}

/// Counts what is written to it.
struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mark_weighs_what_its_data_takes_as_json() {
        for data in [json!(null), json!({"a": [1, "\u{e9}"]}), json!("x".repeat(9_000))] {
            let long = data.to_string().len();
            assert_eq!(Mark { from: PairId::fresh(), data, cause: None }.weight(), OVERHEAD + long);
        }
    }
}
