//! What a peer's bytes say: frames from a client to a server, as RFC 6455 has them. Plain data; [`super::read`] reads the
//! bytes.
//!
//! Unmasks in place, joins fragments and guards the protocol, as soon as a header shows what is wrong. Between two
//! messages nothing is kept but numbers.

use bytes::{Buf as _, BytesMut};

use super::read::Incoming;
use crate::protocol::{CloseCode, Closing, FrameKind};

/// How many bytes may arrive for each byte of the largest message before one is complete: a message may come in many
/// fragments with a header each, but not in empty ones without end.
const OVERHEAD: usize = 16;
/// The longest payload of a control frame.
const LONGEST_CONTROL: usize = 125;

/// Reads frames out of bytes.
pub(super) struct Decoder {
    /// The largest message.
    limit: usize,
    /// How many bytes came since the last message.
    since_message: usize,
    /// A message whose last fragment has not come.
    open: Option<Box<Open>>,
}

struct Open {
    kind: FrameKind,
    bytes: Vec<u8>,
    /// How many of them are whole characters, where it is text.
    sound: usize,
}

impl Decoder {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, since_message: 0, open: None }
    }

    /// Takes the next thing that was said out of `wire`. An error tells how many more bytes it takes, at least. After
    /// [`Incoming::Close`] and [`Incoming::Broken`] there is nothing to be read any more.
    pub(super) fn next(&mut self, wire: &mut BytesMut) -> Result<Incoming, usize> {
        loop {
            let head = Head::read(wire)?;
            if let Err(code) = self.check(&head) {
                return Ok(Incoming::Broken(code));
            }
            let whole = head.length + head.payload;
            if wire.len() < whole {
                return Err(whole - wire.len());
            }
            wire.advance(head.length);
            let mut payload = wire.split_to(head.payload);
            unmask(&mut payload, head.mask);
            self.since_message += whole;
            match self.take(&head, payload) {
                Ok(Some(incoming)) => {
                    self.since_message = 0;
                    return Ok(incoming);
                }
                Ok(None) if self.since_message > self.limit.saturating_mul(OVERHEAD).saturating_add(64 << 10) => {
                    return Ok(Incoming::Broken(CloseCode::TooBig));
                }
                Ok(None) => {}
                Err(code) => return Ok(Incoming::Broken(code)),
            }
        }
    }

    /// Whether a frame may come that begins like this.
    fn check(&self, head: &Head) -> Result<(), CloseCode> {
        let fits = match head.opcode {
            0x0 => self.open.is_some(),
            0x1 | 0x2 => self.open.is_none(),
            0x8..=0xA => head.last && head.payload <= LONGEST_CONTROL,
            _ => false,
        };
        if head.reserved || !head.masked || !fits {
            return Err(CloseCode::Protocol);
        }
        let before = self.open.as_ref().filter(|_| head.opcode == 0x0).map_or(0, |open| open.bytes.len());
        if head.opcode < 0x8 && head.payload > self.limit - before { Err(CloseCode::TooBig) } else { Ok(()) }
    }

    /// A frame that may come has come: what is said by it, unless that goes on.
    fn take(&mut self, head: &Head, payload: BytesMut) -> Result<Option<Incoming>, CloseCode> {
        let incoming = match head.opcode {
            0x8 => Incoming::Close(closing(&payload)?),
            0x9 => Incoming::Ping(payload.freeze()),
            0xA => Incoming::Pong(payload.freeze()),
            0x0 => match self.open.take() {
                Some(mut open) => {
                    open.extend(&payload, head.last)?;
                    if !head.last {
                        self.open = Some(open);
                        return Ok(None);
                    }
                    Incoming::Frame(open.kind, open.bytes.into())
                }
                None => return Err(CloseCode::Protocol),
            },
            opcode => {
                let kind = if opcode == 0x1 { FrameKind::Text } else { FrameKind::Binary };
                if !head.last {
                    let mut open = Open { kind, bytes: Vec::new(), sound: 0 };
                    open.extend(&payload, false)?;
                    self.open = Some(Box::new(open));
                    return Ok(None);
                }
                if kind == FrameKind::Text && std::str::from_utf8(&payload).is_err() {
                    return Err(CloseCode::InvalidText);
                }
                Incoming::Frame(kind, payload.freeze())
            }
        };
        Ok(Some(incoming))
    }
}

impl Open {
    /// Adds a fragment. Text that can't become sound any more is refused at once.
    fn extend(&mut self, fragment: &[u8], last: bool) -> Result<(), CloseCode> {
        self.bytes.extend_from_slice(fragment);
        if self.kind == FrameKind::Text {
            match std::str::from_utf8(&self.bytes[self.sound..]) {
                Ok(text) => self.sound += text.len(),
                Err(error) if error.error_len().is_none() && !last => self.sound += error.valid_up_to(),
                Err(_) => return Err(CloseCode::InvalidText),
            }
        }
        Ok(())
    }
}

/// What a close frame says.
fn closing(payload: &[u8]) -> Result<Closing, CloseCode> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        let nothing = Closing { code: 1005, reason: String::new() };
        return if payload.is_empty() { Ok(nothing) } else { Err(CloseCode::Protocol) };
    };
    let reason = std::str::from_utf8(reason).map_err(|_| CloseCode::InvalidText)?;
    Ok(match u16::from_be_bytes(*code) {
        code @ (1000..=1003 | 1007..=1013 | 3000..=4999) => Closing { code, reason: reason.into() },
        // One that nobody may say.
        _ => Closing::because(CloseCode::Protocol, "Protocol violation"),
    })
}

/// The header of a frame.
struct Head {
    last: bool,
    reserved: bool,
    opcode: u8,
    masked: bool,
    mask: [u8; 4],
    /// How long the header is.
    length: usize,
    /// How long its payload is.
    payload: usize,
}

impl Head {
    /// An error tells how many bytes are missing, at least.
    fn read(wire: &[u8]) -> Result<Self, usize> {
        let Some((&[first, second], rest)) = wire.split_first_chunk::<2>() else { return Err(2 - wire.len()) };
        let masked = second & 0x80 != 0;
        let (width, short) = match second & 0x7F {
            126 => (2, None),
            127 => (8, None),
            n => (0, Some(usize::from(n))),
        };
        let length = 2 + width + if masked { 4 } else { 0 };
        if wire.len() < length {
            return Err(length - wire.len());
        }
        let (size, rest) = rest.split_at(width);
        // Larger than the memory is larger than any limit.
        let long = || size.iter().fold(0, |sum: usize, byte| sum.saturating_mul(256).saturating_add((*byte).into()));
        Ok(Self {
            last: first & 0x80 != 0,
            reserved: first & 0x70 != 0,
            opcode: first & 0x0F,
            masked,
            mask: rest.first_chunk().copied().filter(|_| masked).unwrap_or_default(),
            length,
            payload: short.unwrap_or_else(long),
        })
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};

    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::{
        Error, Message, WebSocket,
        error::CapacityError,
        protocol::{Role, WebSocketConfig},
    };

    use super::*;

    const LIMIT: usize = 1_000;

    fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut wire = vec![first];
        let masked = if mask.is_some() { 0x80 } else { 0 };
        match payload.len() {
            n @ 0..=125 => wire.push(masked | n as u8),
            n @ 126..=0xFFFF => {
                wire.push(masked | 126);
                wire.extend((n as u16).to_be_bytes());
            }
            n => {
                wire.push(masked | 127);
                wire.extend((n as u64).to_be_bytes());
            }
        }
        wire.extend(mask.iter().flatten());
        let key = mask.unwrap_or_default();
        wire.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        wire
    }

    /// All that is said in bytes that arrive in such pieces.
    fn said(wire: &[u8], pieces: usize, limit: usize) -> Vec<String> {
        let (mut decoder, mut buffer, mut all) = (Decoder::new(limit), BytesMut::new(), Vec::new());
        for piece in wire.chunks(pieces) {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.next(&mut buffer) {
                    Ok(incoming) => {
                        all.push(format!("{incoming:?}"));
                        if matches!(incoming, Incoming::Close(_) | Incoming::Broken(_)) {
                            return all;
                        }
                    }
                    Err(missing) => break assert!(missing > 0),
                }
            }
        }
        all
    }

    struct Wire<'a>(&'a [u8]);

    impl Read for Wire<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { self.0.read(buf) }
        }
    }

    impl Write for Wire<'_> {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The same as another reader has it.
    fn said_by_tungstenite(wire: &[u8]) -> Vec<String> {
        let config = WebSocketConfig::default().max_message_size(Some(LIMIT)).max_frame_size(Some(LIMIT));
        let mut socket = WebSocket::from_raw_socket(Wire(wire), Role::Server, Some(config));
        let mut all = Vec::new();
        loop {
            let incoming = match socket.read() {
                Ok(Message::Text(text)) => Incoming::Frame(FrameKind::Text, text.into()),
                Ok(Message::Binary(bytes)) => Incoming::Frame(FrameKind::Binary, bytes),
                Ok(Message::Ping(bytes)) => Incoming::Ping(bytes),
                Ok(Message::Pong(bytes)) => Incoming::Pong(bytes),
                Ok(Message::Close(None)) => Incoming::Close(Closing { code: 1005, reason: String::new() }),
                Ok(Message::Close(Some(frame))) => {
                    Incoming::Close(Closing { code: frame.code.into(), reason: frame.reason.as_str().into() })
                }
                Ok(Message::Frame(_)) => unreachable!(),
                Err(Error::Io(_)) => return all,
                Err(Error::Capacity(CapacityError::MessageTooLong { .. })) => Incoming::Broken(CloseCode::TooBig),
                Err(Error::Utf8(_)) => Incoming::Broken(CloseCode::InvalidText),
                Err(_) => Incoming::Broken(CloseCode::Protocol),
            };
            all.push(format!("{incoming:?}"));
            if matches!(incoming, Incoming::Close(_) | Incoming::Broken(_)) {
                return all;
            }
        }
    }

    fn payloads() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => "[a-zäß€😀]{0,40}".prop_map(String::into_bytes),
            2 => prop::collection::vec(any::<u8>(), 0..140),
            1 => (120..1_100usize).prop_map(|n| vec![b'x'; n]),
            1 => (990..5_010u16).prop_map(|code| code.to_be_bytes().to_vec()),
        ]
    }

    /// First bytes of frames, most of them sound.
    fn firsts() -> impl Strategy<Value = u8> {
        prop_oneof![
            12 => prop::sample::select(vec![0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A]),
            1 => Just(0x88),
            1 => any::<u8>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn frames_are_read_as_another_reader_does(
            frames in prop::collection::vec((firsts(), payloads(), prop::option::weighted(0.98, any::<[u8; 4]>())), 1..9),
            pieces in 1..300usize,
        ) {
            let wire: Vec<u8> = frames.iter().flat_map(|(first, payload, mask)| frame(*first, payload, *mask)).collect();
            let (ours, theirs) = (said(&wire, pieces, LIMIT), said_by_tungstenite(&wire));
            // With two things wrong in one frame (a control frame, or one without a mask, that is longer than anything may
            // be), either may be said.
            let sound = |all: &[String]| all.iter().filter(|said| !said.starts_with("Broken")).cloned().collect::<Vec<_>>();
            prop_assert_eq!(sound(&ours), sound(&theirs));
            prop_assert_eq!(ours.len(), theirs.len(), "{:?} and {:?}", ours, theirs);
            let alone = |first: u8| frames.iter().all(|(other, ..)| *other == first);
            let wrong_twice = frames
                .iter()
                .any(|(first, payload, mask)| payload.len() > LIMIT && (*first == 0x88 || mask.is_none()));
            if !wrong_twice && (alone(0x81) || alone(0x82) || alone(0x88)) {
                prop_assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn characters_may_be_cut_by_fragments_and_nonsense_is_refused_at_once() {
        let mask = Some([1, 2, 3, 4]);
        let text = "a€b".as_bytes();
        let cut = [frame(0x01, &text[..2], mask), frame(0x00, &text[2..3], mask), frame(0x80, &text[3..], mask)];
        assert_eq!(said(&cut.concat(), 1, LIMIT), [format!("{:?}", Incoming::Frame(FrameKind::Text, "a€b".into()))]);
        let unfinished = [frame(0x01, &text[..2], mask), frame(0x80, b"", mask)].concat();
        assert_eq!(said(&unfinished, 99, LIMIT), ["Broken(InvalidText)"]);
        assert_eq!(said(&frame(0x01, b"a\xFFb", mask), 99, LIMIT), ["Broken(InvalidText)"]);
    }

    #[test]
    fn what_is_wrong_shows_before_the_payload_has_come() {
        for (first, length, code) in
            [(0x82, 1_001, "TooBig"), (0xC2, 9, "Protocol"), (0x80, 9, "Protocol"), (0x89, 126, "Protocol")]
        {
            let whole = frame(first, &vec![0; length], Some([0; 4]));
            assert_eq!(said(&whole[..whole.len() - length], 1, LIMIT), [format!("Broken({code})")], "{first:x}");
        }
        let huge = [0x82, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
        assert_eq!(said(&huge, 99, LIMIT), ["Broken(TooBig)"]);
        assert_eq!(said(&frame(0x82, b"unmasked", None), 99, LIMIT), ["Broken(Protocol)"]);
    }

    #[test]
    fn empty_fragments_come_to_an_end() {
        let mask = Some([0; 4]);
        let wire = [frame(0x02, b"", mask), frame(0x00, b"", mask).repeat(20_000)].concat();
        assert_eq!(said(&wire, 4_096, LIMIT), ["Broken(TooBig)"]);
    }
}
