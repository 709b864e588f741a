//! Floor 0: values that cross a wire. No I/O, no tasks, no clock.

mod close;
mod command;
mod cursor;
mod envelope;
mod event;
mod fault;
mod grant;
mod id;
mod room;
mod rpc;
mod run;
mod strict;
mod ticket;
mod topic;

pub use close::{CloseCode, Closing, LONGEST_REASON};
pub use command::{
    CloseParams, Command, Direction, METHODS, MembersParams, Method, MoveParams, PauseParams, PausePolicy, Payload,
    ReasonParams, ResumeParams, SetParams, TicketParams, check_meta,
};
pub use cursor::{BadCursor, read_cursor, write_cursor};
pub use envelope::{Envelope, Mail, Reply};
pub use event::{Cause, Event, EventKind, Told};
pub use fault::{Failure, Fault};
pub use grant::Grants;
pub use id::{BadName, Fence, NodeId, PairId, Position, RoomName, SiblingId};
pub use room::{Format, FrameKind, Rate, Settings, Slow, Violations};
pub use rpc::{Answer, BadRequest, Codec, Message, Notification, Request};
pub use run::{BadRun, Run, RunBuilder};
pub use strict::from_json as strict_json;
pub use ticket::{Side, Ticket, TicketKeys};
pub use topic::Topic;
