//! Cursors: what a sibling shows to hear the rest of its pair's story.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use uuid::Uuid;

use super::{PairId, Position};

/// The first byte of every cursor, so that its layout may change.
const VERSION: u8 = 1;
/// Version, pair, offset, nonce.
const LENGTH: usize = 1 + 16 + 8 + 8;

/// Why a cursor was refused. It is never taken for "now".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCursor {
    /// Not a cursor that this gateway ever gave out.
    #[error("the cursor is malformed: use one from an event, or \"start\"")]
    Malformed,
    /// A cursor, but of another pair.
    #[error("the cursor belongs to another pair")]
    Foreign,
}

/// The URL-safe text that names `position` in the history of `pair`.
#[must_use]
pub fn write_cursor(pair: PairId, position: Position) -> String {
    let mut bytes = [0u8; LENGTH];
    bytes[0] = VERSION;
    bytes[1..17].copy_from_slice(pair.uuid().as_bytes());
    bytes[17..25].copy_from_slice(&position.offset.to_be_bytes());
    bytes[25..].copy_from_slice(&position.nonce.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The position that `text` names in the history of `pair`; `start` is the place before its first event.
///
/// # Errors
/// [`BadCursor`] when the text is no cursor, or another pair's.
pub fn read_cursor(pair: PairId, text: &str) -> Result<Position, BadCursor> {
    if text == "start" {
        return Ok(Position::START);
    }
    let bytes: [u8; LENGTH] =
        URL_SAFE_NO_PAD.decode(text).ok().and_then(|b| b.try_into().ok()).ok_or(BadCursor::Malformed)?;
    let (&[version], rest) = bytes.split_first_chunk::<1>().ok_or(BadCursor::Malformed)?;
    if version != VERSION {
        return Err(BadCursor::Malformed);
    }
    let (id, rest) = rest.split_first_chunk::<16>().ok_or(BadCursor::Malformed)?;
    if PairId::from_uuid(Uuid::from_bytes(*id)) != pair {
        return Err(BadCursor::Foreign);
    }
    let (offset, rest) = rest.split_first_chunk::<8>().ok_or(BadCursor::Malformed)?;
    let nonce: [u8; 8] = rest.try_into().map_err(|_| BadCursor::Malformed)?;
    Ok(Position { offset: u64::from_be_bytes(*offset), nonce: u64::from_be_bytes(nonce) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(offset: u64, nonce: u64) {
            let (pair, position) = (PairId::fresh(), Position { offset, nonce });
            let text = write_cursor(pair, position);
            prop_assert_eq!(read_cursor(pair, &text), Ok(position));
            prop_assert!(text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_'));
            prop_assert_eq!(read_cursor(PairId::fresh(), &text), Err(BadCursor::Foreign));
        }

        #[test]
        fn noise_is_refused(text in "[ -~]{0,60}") {
            prop_assume!(text != "start");
            prop_assert!(read_cursor(PairId::fresh(), &text).is_err());
        }
    }
}
