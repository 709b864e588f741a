//! What is published: its two kinds, as they go out and come in.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{reply::read_told, wire};
use crate::protocol::Position;

/// The first byte of a message that was published; then the sender, its era, the payload.
const MESSAGE: u8 = b'n';

/// How long sender and era are.
const STAMP: usize = 8 + 4;

/// How much of a command is neither channel nor payload, at most.
const WORDS: usize = 64;

/// The first byte of a message that was appended; then what `lua/entries.lua` says.
const ENTRY: u8 = b'e';

/// A payload on its way out, as the command that it becomes.
pub(super) struct Outgoing {
    /// Up to the body; with all of it where that is short.
    command: BytesMut,
    /// Where the era stands.
    era: usize,
    /// A long body, as it came: what ends the command stands behind it.
    body: Bytes,
}

impl Outgoing {
    pub(super) fn new(channel: &str, sender: u64, head: &[u8], mut body: Bytes) -> Self {
        let long = body.len() >= wire::SHORT;
        let room = WORDS + channel.len() + STAMP + head.len();
        let mut command = BytesMut::with_capacity(if long { room } else { room + body.len() });
        wire::head(&mut command, 3);
        wire::blob(&mut command, b"SPUBLISH");
        wire::blob(&mut command, channel.as_bytes());
        wire::begin_blob(&mut command, 1 + STAMP + head.len() + body.len());
        command.put_u8(MESSAGE);
        command.put_u64(sender);
        let era = command.len();
        command.put_u32(0);
        command.put_slice(head);
        if !long {
            command.put_slice(&std::mem::take(&mut body));
            command.put_slice(wire::END);
        }
        Self { command, era, body }
    }

    pub(super) fn bytes(&self) -> usize {
        self.command.len() + self.body.len()
    }

    /// It leaves in this era: only then is that known.
    pub(super) fn leave(mut self, era: u32) -> [Bytes; 3] {
        self.command[self.era..self.era + 4].copy_from_slice(&era.to_be_bytes());
        let end = if self.body.is_empty() { &[][..] } else { wire::END };
        [self.command.freeze(), self.body, Bytes::from_static(end)]
    }
}

/// Takes sender and era from before a payload.
pub(super) fn take_stamp(mut bytes: Bytes) -> Option<(u64, u32, Bytes)> {
    (bytes.len() >= STAMP).then(|| (bytes.get_u64(), bytes.get_u32(), bytes))
}

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
        let of = |bytes: &[u8]| read(Bytes::copy_from_slice(bytes));
        let entry =
            [b"e", &[2, u64::MAX].map(u64::to_be_bytes).concat()[..], &[8], &7u64.to_be_bytes(), b"a b"].concat();
        let Some(Said { entry: Some((position, previous)), bytes }) = of(&entry) else { panic!("no entry") };
        assert_eq!(position, Position { offset: 2, nonce: u64::MAX });
        assert_eq!((previous.nonce, bytes.as_ref()), (7, b"a b".as_slice()));
        let Some(Said { entry: None, bytes }) = of(b"nstamp") else { panic!("no message") };
        assert_eq!(bytes, "stamp");
        for forged in [b"".as_slice(), b"x1", &entry[..1], &entry[..17], &entry[..25]] {
            assert!(of(forged).is_none(), "{forged:?}");
        }
    }
}
