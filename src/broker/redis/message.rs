//! What is published: its two kinds, as they come in.

use bytes::{Buf as _, Bytes};

use super::{board::MESSAGE, reply::read_told};
use crate::protocol::Position;

/// The first byte of a message that was appended; then position, space, previous, space.
const ENTRY: u8 = b'e';

/// What a message is.
pub(super) struct Said {
    /// Position and previous of an entry; `None` for what was published.
    pub(super) entry: Option<(Position, Position)>,
    /// The payload; with the sender's stamp before it, if it was published.
    pub(super) bytes: Bytes,
}

/// Reads a message; its payload stays where it is.
pub(super) fn read(mut bytes: Bytes) -> Option<Said> {
    let kind = *bytes.first()?;
    bytes.advance(1);
    match kind {
        MESSAGE => Some(Said { entry: None, bytes }),
        ENTRY => {
            let (position, previous, payload) = read_told(&bytes)?;
            bytes.advance(payload);
            Some(Said { entry: Some((position, previous)), bytes })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read() {
        let of = |text: &'static str| read(Bytes::from_static(text.as_bytes()));
        let Some(Said { entry: Some((position, previous)), bytes }) = of("e2-18446744073709551615 1-7 a b") else {
            panic!("no entry")
        };
        assert_eq!(position, Position { offset: 2, nonce: u64::MAX });
        assert_eq!((previous.nonce, bytes.as_ref()), (7, b"a b".as_slice()));
        let Some(Said { entry: None, bytes }) = of("nstamp") else { panic!("no message") };
        assert_eq!(bytes, "stamp");
        for forged in ["", "e", "e1-2", "e1-2 ", "e1-2 3", "ex-2 1-1 ", "x1"] {
            assert!(of(forged).is_none(), "{forged}");
        }
    }
}
