//! Cursors: what a sibling shows to hear the rest of its pair's story. They are sealed: whoever could name any room in
//! one would be told what is said there.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Buf as _, BufMut as _};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{PairId, Position, RoomName, SEAL, TicketKeys, Watching};

/// The first byte of every cursor, so that its layout may change. The first one named a place in the pair's own history
/// alone.
const FIRST: u8 = 1;
const VERSION: u8 = 2;
/// Version, pair, offset, nonce; then what is watched, offset and nonce in the room's talk, the room's name, the seal.
const FIRST_LENGTH: usize = 1 + 16 + 16;

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

/// A place in a pair's story, which its own history and the talk of its room make together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// In its own history.
    pub pair: Position,
    /// The room where it is there, and the place in that one's talk: what was told last of it, or where the pair came to it.
    /// What was passed over untold is not named, but now and then. After its end it is in none.
    pub room: Option<(RoomName, Position)>,
    /// What it watches there.
    pub watching: Watching,
}

/// What a cursor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    /// Before the first event.
    Start,
    /// A place in the pair's own history; the first version knew no other.
    First(Position),
    /// A place in its story.
    Place(Place),
}

/// The URL-safe text that names a place in the story of `pair`.
#[must_use]
pub fn write_cursor(pair: PairId, place: &Place, keys: &TicketKeys) -> String {
    let mut bytes = Vec::with_capacity(FIRST_LENGTH + 1 + 16 + 128 + SEAL);
    bytes.put_u8(VERSION);
    bytes.put_slice(pair.uuid().as_bytes());
    put(&mut bytes, place.pair);
    let Watching { joins, marks, signals } = place.watching;
    bytes.put_u8(u8::from(joins) | u8::from(marks) << 1 | u8::from(signals) << 2);
    if let Some((room, at)) = &place.room {
        put(&mut bytes, *at);
        bytes.put_slice(room.as_str().as_bytes());
    }
    let seal = keys.seal(&bytes);
    bytes.put_slice(&seal);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What `text` says of the story of `pair`; `start` is the place before its first event.
///
/// # Errors
/// [`BadCursor`] when the text is no cursor, or another pair's.
pub fn read_cursor(pair: PairId, text: &str, keys: &TicketKeys) -> Result<Cursor, BadCursor> {
    if text == "start" {
        return Ok(Cursor::Start);
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadCursor::Malformed)?;
    let mut rest = match bytes.first() {
        Some(&FIRST) if bytes.len() == FIRST_LENGTH => &bytes[..],
        Some(&VERSION) if bytes.len() > FIRST_LENGTH + SEAL => {
            let (said, seal) = bytes.split_at(bytes.len() - SEAL);
            // Another pair's is said to be so.
            if said[1..17] == *pair.uuid().as_bytes() && !keys.has_sealed(said, seal) {
                return Err(BadCursor::Malformed);
            }
            said
        }
        _ => return Err(BadCursor::Malformed),
    };
    let version = rest.get_u8();
    if PairId::from_uuid(Uuid::from_u128(rest.get_u128())) != pair {
        return Err(BadCursor::Foreign);
    }
    let at = take(&mut rest);
    if version == FIRST {
        return Ok(Cursor::First(at));
    }
    let bits = rest.get_u8();
    let watching = Watching { joins: bits & 1 != 0, marks: bits & 2 != 0, signals: bits & 4 != 0 };
    let room = match rest.len() {
        0 => None,
        1..=16 => return Err(BadCursor::Malformed),
        _ => {
            let talk = take(&mut rest);
            let name = std::str::from_utf8(rest).ok().and_then(|name| name.parse().ok());
            Some((name.ok_or(BadCursor::Malformed)?, talk))
        }
    };
    Ok(Cursor::Place(Place { pair: at, room, watching }))
}

fn put(bytes: &mut Vec<u8>, position: Position) {
    bytes.put_u64(position.offset);
    bytes.put_u64(position.nonce);
}

fn take(bytes: &mut &[u8]) -> Position {
    Position { offset: bytes.get_u64(), nonce: bytes.get_u64() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            numbers: [u64; 4], bits: [bool; 3], room in prop::option::of("[A-Za-z0-9._~/-]{1,128}")
        ) {
            let at = |n: usize| Position { offset: numbers[n], nonce: numbers[n + 1] };
            let [joins, marks, signals] = bits;
            let room = room.map(|name| (name.parse().unwrap(), at(2)));
            let place = Place { pair: at(0), room, watching: Watching { joins, marks, signals } };
            let pair = PairId::fresh();
            let keys = TicketKeys::new([&b"one"[..]]);
            let text = write_cursor(pair, &place, &keys);
            prop_assert_eq!(read_cursor(pair, &text, &keys), Ok(Cursor::Place(place)));
            prop_assert_eq!(read_cursor(pair, &text, &TicketKeys::new([&b"another"[..]])), Err(BadCursor::Malformed));
            let both = TicketKeys::new([&b"another"[..], b"one"]);
            prop_assert!(read_cursor(pair, &text, &both).is_ok(), "keys are rotated");
            let mut bent = URL_SAFE_NO_PAD.decode(&text).unwrap();
            let last = bent.len() - 1;
            bent[numbers[0] as usize % last + 1] ^= 4;
            prop_assert!(read_cursor(pair, &URL_SAFE_NO_PAD.encode(bent), &keys).is_err());
            prop_assert!(text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_'));
            prop_assert_eq!(read_cursor(PairId::fresh(), &text, &keys), Err(BadCursor::Foreign));
            prop_assert!(text.len() < 300, "it fits into a URL");
        }

        #[test]
        fn what_the_first_version_wrote_is_read(offset: u64, nonce: u64) {
            let (pair, position) = (PairId::fresh(), Position { offset, nonce });
            let mut bytes = vec![FIRST];
            bytes.extend(pair.uuid().as_bytes());
            put(&mut bytes, position);
            let keys = TicketKeys::new([&b"any"[..]]);
            prop_assert_eq!(read_cursor(pair, &URL_SAFE_NO_PAD.encode(bytes), &keys), Ok(Cursor::First(position)));
        }

        #[test]
        fn noise_is_refused(text in "[ -~]{0,60}", mut bytes: Vec<u8>) {
            prop_assume!(text != "start");
            let keys = TicketKeys::new([&b"any"[..]]);
            prop_assert!(read_cursor(PairId::fresh(), &text, &keys).is_err());
            bytes.insert(0, VERSION);
            prop_assert!(read_cursor(PairId::fresh(), &URL_SAFE_NO_PAD.encode(bytes), &keys).is_err());
        }
    }
}
