//! Envelopes: what one node says to another through the broker.
//!
//! Two layouts behind one version byte: runs of frames, which are sliced and not decoded, and messages in
//! MessagePack. A node ignores what it does not understand, so that two versions can share a cluster.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{Cause, Command, Failure, Fault, Fence, NodeId, PairId, Run};

const VERSION: u8 = 1;
const FRAMES: u8 = 0;
const MAIL: u8 = 1;
/// Version, layout, the node that published.
const FRAMES_HEAD: usize = 2 + 16;

/// What one node tells one other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Mail {
    /// Do this for the client socket that you have.
    Ask {
        /// What the reply is matched by, at the asking node.
        number: u64,
        /// Who asks.
        from: NodeId,
        /// Whose client socket.
        pair: PairId,
        /// What to do.
        command: Command,
        /// Who wanted it.
        cause: Cause,
    },
    /// What came of it.
    Reply {
        /// The ask's number.
        number: u64,
        /// The result, or why there is none.
        outcome: Reply,
    },
    /// Another client socket wants the place of yours: close it, if it is this one.
    Yield {
        /// What the reply is matched by, at the asking node.
        number: u64,
        /// Who asks.
        from: NodeId,
        /// Whose.
        pair: PairId,
        /// Yours.
        held: Fence,
    },
}

/// What came of an [`Mail::Ask`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// It took effect.
    Done(Value),
    /// It did not.
    Failed(Failure),
    /// The client socket is not on this node (any more): look again.
    NotHere,
    /// The same key is being carried out already: ask again in a moment.
    Again,
}

/// One envelope.
#[derive(Debug, Clone, PartialEq)]
pub enum Envelope {
    /// Frames for a room's members on other nodes.
    Frames {
        /// The node that published them, which has delivered them to its own members already.
        from: NodeId,
        /// The frames.
        run: Run,
    },
    /// Anything else.
    Mail(Mail),
}

impl Envelope {
    /// Writes frames: the one copy on the way to the broker.
    #[must_use]
    pub fn frames(from: NodeId, run: &Run) -> Bytes {
        let mut bytes = BytesMut::with_capacity(FRAMES_HEAD + run.len());
        bytes.put_u8(VERSION);
        bytes.put_u8(FRAMES);
        bytes.put_slice(from.uuid().as_bytes());
        bytes.put_slice(run.wire());
        bytes.freeze()
    }

    /// Writes mail.
    ///
    /// # Errors
    /// [`Fault::Internal`] when it can't be encoded.
    pub fn mail(mail: &Mail) -> Result<Bytes, Failure> {
        let mut bytes = vec![VERSION, MAIL];
        rmp_serde::encode::write_named(&mut bytes, mail).map_err(|e| Failure::new(Fault::Internal, e.to_string()))?;
        Ok(bytes.into())
    }

    /// Reads either. Frames are slices of `bytes`.
    ///
    /// # Errors
    /// A phrase that says what is wrong.
    pub fn read(bytes: &Bytes) -> Result<Self, String> {
        match bytes.get(..2) {
            Some([VERSION, FRAMES]) => {
                let from = bytes.get(2..FRAMES_HEAD).ok_or("frames without a sender")?;
                let from = NodeId::from_uuid(Uuid::from_slice(from).map_err(|e| e.to_string())?);
                let run = Run::from_wire(bytes.slice(FRAMES_HEAD..)).map_err(|e| e.to_string())?;
                Ok(Self::Frames { from, run })
            }
            Some([VERSION, MAIL]) => {
                let mut rest = &bytes[2..];
                let mut reader = rmp_serde::Deserializer::new(&mut rest);
                reader.set_max_depth(super::strict::DEEPEST + 32);
                Mail::deserialize(&mut reader).map(Self::Mail).map_err(|e| e.to_string())
            }
            Some([version, _]) if *version != VERSION => Err(format!("version {version}")),
            _ => Err("unknown layout".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::protocol::FrameKind;

    #[test]
    fn mail_arrives_as_it_was_sent() {
        let (command, _) = Command::read("client.push", json!({"text": "hi"})).unwrap();
        let cause = Cause { key: Some("k".into()), id: None, sibling: None };
        let (from, pair) = (NodeId::fresh(), PairId::fresh());
        for mail in [
            Mail::Ask { number: u64::MAX, from, pair, command, cause },
            Mail::Reply { number: 1, outcome: Reply::Done(json!({"position": 3})) },
            Mail::Reply { number: 2, outcome: Reply::Failed(Failure::new(Fault::Conflict, "no")) },
            Mail::Reply { number: 3, outcome: Reply::NotHere },
            Mail::Yield { number: 4, from, pair, held: Fence { epoch: 2, nonce: 9 } },
        ] {
            assert_eq!(Envelope::read(&Envelope::mail(&mail).unwrap()), Ok(Envelope::Mail(mail)));
        }
    }

    #[test]
    fn frames_are_sliced() {
        let (from, run) = (NodeId::fresh(), Run::of(FrameKind::Binary, b"payload"));
        assert_eq!(Envelope::read(&Envelope::frames(from, &run)), Ok(Envelope::Frames { from, run }));
    }

    proptest! {
        #[test]
        fn noise_never_panics(mut noise: Vec<u8>, layout in 0u8..3) {
            let _ = Envelope::read(&Bytes::from(noise.clone()));
            noise.splice(0..0, [VERSION, layout]);
            let _ = Envelope::read(&Bytes::from(noise));
        }
    }
}
