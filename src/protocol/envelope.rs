//! Envelopes: what one node says to another through the broker.
//!
//! Behind one version byte: runs of frames, which are sliced and not decoded, and messages in MessagePack. A node ignores what it does not understand, so that two versions can share a cluster.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use uuid::Uuid;

use super::{Cause, Command, Failure, Fault, Fence, Mark, NodeId, PairId, Run};

const VERSION: u8 = 1;
const FRAMES: u8 = 0;
const MAIL: u8 = 1;
const ORDERED: u8 = 2;
const NOTICE: u8 = 3;
const MARK: u8 = 4;
/// Version, layout, and the node that published, or the pair.
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
    /// What waited in an outbox here, in pieces, before the reply to [`Command::Unpark`].
    Crossing {
        /// The ask's number.
        number: u64,
        /// The next of it.
        items: Vec<Crossed>,
    },
}

/// Something that waited in an outbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Crossed {
    /// A run of frames, as it stands on the wire.
    Frames(#[serde(with = "super::command::wire_bytes")] Bytes),
    /// A mark.
    Mark(Mark),
}

/// What one node tells all that have members of a room.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Notice {
    /// Another specification holds: look it up.
    Changed(Option<Cause>),
    /// All members are to be closed.
    Closed {
        /// A short phrase.
        reason: String,
        /// Who wanted it.
        cause: Option<Cause>,
    },
    /// A place in the order in which the broker gives the room's frames to every node: there an outbox crosses from one
    /// to another.
    Cut {
        /// To which.
        to: NodeId,
        /// The number of its [`Command::Unpark`].
        number: u64,
        /// Whether it is the second one, of the node to which it crosses.
        second: bool,
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

/// A mark on the wire.
#[derive(Serialize, Deserialize)]
struct Marked<M> {
    from: Option<NodeId>,
    mark: M,
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
    /// Frames for all of a room's members, those of the publishing node included, in the order in which they come
    /// out of the broker.
    Ordered {
        /// The member that they are not for: their sender.
        except: Option<PairId>,
        /// The frames.
        run: Run,
    },
    /// A mark for a room's members on other nodes, at its place among the frames.
    Mark {
        /// The node that published it, which has delivered it to its own members already. None when it is for them
        /// too, in the order in which it comes out of the broker.
        from: Option<NodeId>,
        /// What it tells.
        mark: Mark,
    },
    /// Something for the members of a room.
    Notice(Notice),
    /// Anything else.
    Mail(Mail),
}

impl Envelope {
    /// What stands before frames, which follow as they are on the wire.
    #[must_use]
    pub fn frames_head(from: NodeId) -> [u8; FRAMES_HEAD] {
        head(FRAMES, from.uuid())
    }

    /// What stands before frames that are to have one order.
    #[must_use]
    pub fn ordered_head(except: Option<PairId>) -> [u8; FRAMES_HEAD] {
        head(ORDERED, except.map_or(Uuid::nil(), PairId::uuid))
    }

    /// Writes a mark; without `from`, one that is to have its place in the one order of the room.
    ///
    /// # Errors
    /// [`Fault::Internal`] when it can't be encoded.
    pub fn mark(from: Option<NodeId>, mark: &Mark) -> Result<Bytes, Failure> {
        message(MARK, &Marked { from, mark })
    }

    /// Writes mail.
    ///
    /// # Errors
    /// [`Fault::Internal`] when it can't be encoded.
    pub fn mail(mail: &Mail) -> Result<Bytes, Failure> {
        message(MAIL, mail)
    }

    /// Writes a notice.
    ///
    /// # Errors
    /// [`Fault::Internal`] when it can't be encoded.
    pub fn notice(notice: &Notice) -> Result<Bytes, Failure> {
        message(NOTICE, notice)
    }

    /// Reads any of them. Frames are slices of `bytes`.
    ///
    /// # Errors
    /// A phrase that says what is wrong.
    pub fn read(bytes: &Bytes) -> Result<Self, String> {
        match bytes.get(..2) {
            Some([VERSION, FRAMES]) => {
                let (from, run) = headed(bytes)?;
                Ok(Self::Frames { from: NodeId::from_uuid(from), run })
            }
            Some([VERSION, ORDERED]) => {
                let (except, run) = headed(bytes)?;
                Ok(Self::Ordered { except: Some(except).filter(|id| !id.is_nil()).map(PairId::from_uuid), run })
            }
            Some([VERSION, MARK]) => {
                let Marked { from, mark } = decoded(&bytes[2..])?;
                Ok(Self::Mark { from, mark })
            }
            Some([VERSION, MAIL]) => decoded(&bytes[2..]).map(Self::Mail),
            Some([VERSION, NOTICE]) => decoded(&bytes[2..]).map(Self::Notice),
            Some([version, _]) if *version != VERSION => Err(format!("version {version}")),
            _ => Err("unknown layout".into()),
        }
    }
}

fn head(layout: u8, id: Uuid) -> [u8; FRAMES_HEAD] {
    let mut bytes = [VERSION; FRAMES_HEAD];
    bytes[1] = layout;
    bytes[2..].copy_from_slice(id.as_bytes());
    bytes
}

fn headed(bytes: &Bytes) -> Result<(Uuid, Run), String> {
    let id = bytes.get(2..FRAMES_HEAD).ok_or("frames without a head")?;
    let id = Uuid::from_slice(id).map_err(|e| e.to_string())?;
    Ok((id, Run::from_wire(bytes.slice(FRAMES_HEAD..)).map_err(|e| e.to_string())?))
}

fn message<T: Serialize>(layout: u8, message: &T) -> Result<Bytes, Failure> {
    let mut bytes = vec![VERSION, layout];
    rmp_serde::encode::write_named(&mut bytes, message).map_err(|e| Failure::new(Fault::Internal, e.to_string()))?;
    Ok(bytes.into())
}

fn decoded<T: DeserializeOwned>(mut rest: &[u8]) -> Result<T, String> {
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    reader.set_max_depth(super::strict::DEEPEST + 32);
    T::deserialize(&mut reader).map_err(|e| e.to_string())
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
            Mail::Crossing {
                number: 5,
                items: vec![
                    Crossed::Frames(Bytes::from_static(b"\x82\x01x")),
                    Crossed::Mark(Mark { from: pair, data: json!(1), cause: None }),
                ],
            },
        ] {
            assert_eq!(Envelope::read(&Envelope::mail(&mail).unwrap()), Ok(Envelope::Mail(mail)));
        }
    }

    #[test]
    fn frames_are_sliced() {
        let (from, run) = (NodeId::fresh(), Run::of(FrameKind::Binary, b"payload"));
        let read = |head: [u8; FRAMES_HEAD]| Envelope::read(&[&head[..], run.wire()].concat().into());
        let frames = Envelope::Frames { from, run: run.clone() };
        assert_eq!(read(Envelope::frames_head(from)), Ok(frames));
        for except in [None, Some(PairId::fresh())] {
            let ordered = Envelope::Ordered { except, run: run.clone() };
            assert_eq!(read(Envelope::ordered_head(except)), Ok(ordered));
        }
        let notice = Notice::Closed { reason: "late".into(), cause: None };
        assert_eq!(Envelope::read(&Envelope::notice(&notice).unwrap()), Ok(Envelope::Notice(notice)));
    }

    #[test]
    fn a_mark_arrives_as_it_was_set() {
        let data = json!([{"a": u64::MAX, "b": -1}, null, 0.5, "\u{e9}"]);
        let cause = Some(Cause { key: None, id: Some(json!(7)), sibling: Some("s".into()) });
        for from in [None, Some(NodeId::fresh())] {
            for cause in [None, cause.clone()] {
                let mark = Mark { from: PairId::fresh(), data: data.clone(), cause };
                let bytes = Envelope::mark(from, &mark).unwrap();
                assert_eq!(Envelope::read(&bytes), Ok(Envelope::Mark { from, mark }));
            }
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(mut noise: Vec<u8>, layout in 0u8..6) {
            let _ = Envelope::read(&Bytes::from(noise.clone()));
            noise.splice(0..0, [VERSION, layout]);
            let _ = Envelope::read(&Bytes::from(noise));
        }
    }
}
