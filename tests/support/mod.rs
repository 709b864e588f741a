//! What the acceptance tests stand on: real processes, real sockets, and nothing of the gateway's own code.
//!
//! The clients here are written from the contract alone, so that a mistake which the gateway and its
//! own types would make together still shows.

#![allow(dead_code, unused_imports, reason = "each test binary compiles this module and uses its own part of it")]

mod client;
mod dial;
mod gateway;
mod http;
mod pair;
mod process;
mod raw;
mod redis;
mod redis_sets;
mod room;
mod sibling;
mod sse;
mod story;
mod stub;
mod wait;

pub use client::ClientSocket;
pub use dial::{Closed, Dial, Ws, closed_of};
pub use gateway::{ADMIN_KEY, Cluster, Gateway, Kind, Settings};
pub use http::{Reply, exchange, exchange_from, upgrade, upgrade_head};
pub use pair::{Fault, Pair, counter, deep};
pub use raw::RawSocket;
pub use redis::Redis;
pub use redis_sets::{RedisCluster, Sentinels};
pub use room::{Agent, count_up, numbers, of_room, room_path, specify};
pub use sibling::{Arrival, Codec, Sibling, is_kept, kind_of};
pub use sse::Sse;
pub use story::{after, check_run};
pub use stub::{Says, Stub};
pub use wait::{PATIENCE, eventually, until, within};
