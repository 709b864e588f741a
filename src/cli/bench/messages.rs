//! Messages in a stream of bytes, told apart by their heads: what they carry is skipped.

use super::Outcome;

/// How a WebSocket's close frame begins.
const CLOSE: u8 = 0x88;

/// Counts messages, in however small pieces they come.
pub(super) struct Messages {
    heads: Heads,
    /// Bytes that are still to come of what the last head announced, and whether that is a message.
    skip: u64,
    counts: bool,
    /// The first bytes of a head that came in parts.
    begun: Vec<u8>,
    /// What is inside, when that is to be counted instead.
    inside: Option<Box<Messages>>,
}

/// What the heads look like.
#[derive(Clone, Copy)]
enum Heads {
    /// Frames of a server; those with less payload than this are no messages.
    WebSocket(u64),
    /// Lines; `MSG … size` announces a message.
    Nats,
    /// Packets; PUBLISH is a message.
    Mqtt,
    /// None: each message has so many bytes, and nothing else comes.
    Alike(u64),
}

struct Head {
    length: usize,
    rest: u64,
    counts: bool,
}

impl Messages {
    /// Each WebSocket frame with at least so much payload is a message.
    pub(super) fn frames(least: usize) -> Self {
        Self::of(Heads::WebSocket(least as u64), None)
    }

    /// NATS' protocol in WebSocket frames.
    pub(super) fn nats() -> Self {
        Self::of(Heads::WebSocket(0), Some(Heads::Nats))
    }

    /// MQTT in WebSocket frames.
    pub(super) fn mqtt() -> Self {
        Self::of(Heads::WebSocket(0), Some(Heads::Mqtt))
    }

    /// Messages of one size.
    pub(super) fn alike(size: usize) -> Self {
        Self::of(Heads::Alike(size as u64), None)
    }

    fn of(heads: Heads, inside: Option<Heads>) -> Self {
        let inside = inside.map(|heads| Box::new(Self::of(heads, None)));
        Self { heads, skip: 0, counts: false, begun: Vec::new(), inside }
    }

    /// How many messages end in these bytes.
    pub(super) fn count(&mut self, mut bytes: &[u8]) -> Outcome<u64> {
        let mut ended = 0;
        while !bytes.is_empty() {
            if self.skip == 0 {
                let whole = if self.begun.is_empty() { self.heads.read(bytes)? } else { None };
                let head = if let Some(head) = whole {
                    bytes = &bytes[head.length..];
                    head
                } else {
                    self.begun.push(bytes[0]);
                    bytes = &bytes[1..];
                    let Some(head) = self.heads.read(&self.begun)? else { continue };
                    self.begun.clear();
                    head
                };
                (self.skip, self.counts) = (head.rest, head.counts && self.inside.is_none());
                if self.skip == 0 {
                    ended += u64::from(self.counts);
                    continue;
                }
            }
            let step = self.skip.min(bytes.len() as u64);
            let (passed, rest) = bytes.split_at(step as usize);
            (self.skip, bytes) = (self.skip - step, rest);
            match &mut self.inside {
                Some(inside) => ended += inside.count(passed)?,
                None if self.skip == 0 => ended += u64::from(self.counts),
                None => {}
            }
        }
        Ok(ended)
    }
}

impl Heads {
    /// The head that these bytes begin with, when they have all of it.
    fn read(self, bytes: &[u8]) -> Outcome<Option<Head>> {
        Ok(match self {
            Self::WebSocket(least) => match web_socket(bytes) {
                Some(_) if bytes[0] == CLOSE => {
                    return Err("a socket was closed in the middle of a measurement".into());
                }
                head => head.map(|(length, rest)| Head { length, rest, counts: rest >= least }),
            },
            Self::Nats => bytes.iter().position(|byte| *byte == b'\n').map(|end| {
                let counts = bytes.starts_with(b"MSG ");
                let digits = bytes[..end].rsplit(|byte| *byte == b' ').next().unwrap_or_default();
                let size = digits.iter().filter(|d| d.is_ascii_digit()).fold(0, |n, d| n * 10 + u64::from(d - b'0'));
                // The line's end behind the payload belongs to it.
                Head { length: end + 1, rest: if counts { size + 2 } else { 0 }, counts }
            }),
            Self::Mqtt => {
                let length = bytes.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0).map(|last| last + 2);
                length.map(|length| {
                    let digits = bytes[1..length].iter().rev();
                    let rest = digits.fold(0, |n, digit| n << 7 | u64::from(digit & 0x7F));
                    Head { length, rest, counts: bytes[0] >> 4 == 3 }
                })
            }
            Self::Alike(size) => Some(Head { length: 0, rest: size, counts: true }),
        })
    }
}

/// The lengths of a frame's header and of its payload.
fn web_socket(bytes: &[u8]) -> Option<(usize, u64)> {
    let (&[_, seven], rest) = bytes.split_first_chunk::<2>()?;
    match seven {
        126 => Some((4, u16::from_be_bytes(*rest.first_chunk()?).into())),
        127 => Some((10, u64::from_be_bytes(*rest.first_chunk()?))),
        n => Some((2, n.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::raw::write_head, *};

    fn counted(mut messages: Messages, wire: &[u8], step: usize) -> u64 {
        wire.chunks(step).map(|part| messages.count(part).unwrap()).sum()
    }

    fn framed(inside: &[u8], step: usize) -> Vec<u8> {
        let mut wire = Vec::new();
        for part in inside.chunks(step) {
            wire.extend(write_head(2, part.len(), false));
            wire.extend_from_slice(part);
        }
        wire
    }

    #[test]
    fn frames_are_counted_however_they_come() {
        let mut wire = Vec::new();
        for size in [0, 1, 125, 126, 65_535, 65_536, 3] {
            wire.extend(write_head(2, size, false));
            wire.resize(wire.len() + size, 7);
        }
        for step in [1, 2, 3, 7, 1_000, 64 << 10, wire.len()] {
            assert_eq!(counted(Messages::frames(0), &wire, step), 7, "in steps of {step}");
            assert_eq!(counted(Messages::frames(125), &wire, step), 4, "in steps of {step}");
        }
        assert!(Messages::frames(0).count(&[CLOSE, 2, 3, 232]).is_err());
    }

    #[test]
    fn what_is_inside_of_frames_is_counted_wherever_they_are_cut() {
        let lines =
            b"PONG\r\nMSG bench 1 5\r\nMSG \n\r\nPING\r\nMSG bench 1 0\r\n\r\nMSG bench 1 12\r\n012345678901\r\n";
        let mut packets = vec![0x20, 2, 0, 0, 0x30, 9, 0, 5, b'b', b'e', b'n', b'c', b'h', 0x30, 0x30];
        packets.extend([0x30, 0x80 | 72, 1]);
        packets.extend([0x30; 200]);
        for cut in [1, 2, 5, 21, 300] {
            for step in [1, 3, 1_000] {
                let counted_in = |messages, inside: &[u8]| counted(messages, &framed(inside, cut), step);
                assert_eq!(counted_in(Messages::nats(), lines), 3, "frames of {cut} in steps of {step}");
                assert_eq!(counted_in(Messages::mqtt(), &packets), 2, "frames of {cut} in steps of {step}");
            }
        }
        assert_eq!(counted(Messages::alike(10), &[0; 35], 4), 3);
    }
}
