//! Floor 0: values that cross a wire. No I/O, no tasks, no clock.

mod account;
mod close;
mod command;
mod cursor;
mod envelope;
mod event;
mod fault;
mod grant;
mod id;
mod mark;
mod moment;
mod params;
mod revocation;
mod room;
mod rpc;
mod run;
mod spec;
mod strict;
mod ticket;
mod topic;

pub use account::{Account, Authority, PUBLISH, Pattern};
pub use close::{CloseCode, Closing, LONGEST_REASON};
pub use command::{Command, METHODS, Method, Payload};
pub use cursor::{BadCursor, Cursor, Place, read_cursor, write_cursor};
pub use envelope::{Crossed, Envelope, Mail, Notice, Reply};
pub use event::{Cause, Event, EventKind, Said, Stand, Told, Unsaid};
pub use fault::{Failure, Fault};
pub use grant::Grants;
pub use id::{BadName, Fence, NodeId, PairId, Position, RoomName, SiblingId, SignalId};
pub use mark::{MARK_WAIT, Mark};
pub use moment::Moment;
pub use params::{
    AckParams, CloseParams, Direction, KickParams, LeaveParams, MarkParams, MembersParams, MoveParams, PauseParams,
    PausePolicy, ReasonParams, ResumeParams, SetParams, SignalParams, SignalTo, SwitchParams, TicketParams,
    WatchParams, check_meta,
};
pub use revocation::{CLOCKS_DIFFER, Revocation};
pub use room::{Chosen, Format, FrameKind, QUEUE_BYTES, Rate, Settings, Slow, Violations, Watching};
pub use rpc::{Answer, BadRequest, Codec, MOST_IN_BATCH, Message, Request};
pub use run::{BadRun, Run, RunBuilder};
pub use spec::{History, OneOrMany, Order, Publish, RoomSpec};
pub use strict::from_json as strict_json;
pub use ticket::{LONGEST_TICKET, SEAL, Side, Ticket, TicketKeys};
pub use topic::Topic;
