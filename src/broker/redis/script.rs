//! The Lua scripts: every step that must be atomic is one of them.
//!
//! A script is called by its digest. A Redis that doesn't know it (not told yet, restarted, failed over, `SCRIPT FLUSH`)
//! did nothing, so it is then safe to send the source.

use std::sync::LazyLock;

use fred::{
    error::{Error, ErrorKind},
    types::{Value, scripts},
};

use futures_util::future::try_join_all;

use super::{commands::Commands, reply::as_array};
use crate::broker::BrokerError;

/// How many calls are under way at once.
const PORTION: usize = 4_096;
/// How many keys one call has at most: Redis does nothing else meanwhile, for half a millisecond.
const TOGETHER: usize = 256;

pub(super) struct Script {
    code: LazyLock<scripts::Script>,
}

/// A name, and the files that make the script.
macro_rules! scripts {
    ($($name:ident $($file:literal)+;)*) => {
        $(pub(super) static $name: Script = Script {
            code: LazyLock::new(|| {
                scripts::Script::from_lua(concat!($(include_str!(concat!("lua/", $file, ".lua"))),+))
            }),
        };)*
    };
}

scripts! {
    APPEND "record" "entries" "history" "append";
    CONTRIBUTE "entries" "contribute";
    LATEST "entries" "latest";
    READ "entries" "read";
    HEADS "entries" "heads";
    CREATE "create";
    CLAIM "record" "claim";
    RESTORE "record" "entries" "history" "restore";
    REVISE "record" "revise";
    RELEASE "record" "entries" "history" "release";
    END "record" "entries" "history" "end";
    ADOPT "record" "adopt";
    BEGIN "begin";
    SETTLE "settle";
    TELL "record" "entries" "history" "tell";
    CUT "entries" "cut";
    JOIN "entries" "history" "counted" "join";
    LEAVE "entries" "history" "counted" "leave";
    TELL_CHANGES "entries" "history" "counted" "tell_changes";
    CENSUS "entries" "history" "counted" "census";
    NOTE "noted" "note";
    STRIKE "noted" "strike";
    BEAT "beat";
    NODES "nodes";
    CONDEMN "condemn";
    BURY "bury";
    PAGE "page";
    LAY_DOWN "lay_down";
    ENLIST "enlist";
    WEED "weed";
}

impl Script {
    /// Runs the script once.
    pub(super) async fn call(
        &self,
        client: &Commands,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<Value, BrokerError> {
        let digest = self.code.sha1();
        // Values are shared bytes: the copies for the second try cost next to nothing.
        match client.evalsha(digest, keys.clone(), args.clone()).await {
            Err(error) if is_unknown(&error) => self.call_by_source(client, keys, args).await,
            outcome => outcome.map_err(unavailable),
        }
    }

    /// Runs a script without arguments that replies something for each of its keys. Where keys may stand `together` in
    /// one call, many do. All calls are under way at once, so that it takes one round trip (or one for every few
    /// thousand, lest they fill the connection's queue).
    pub(super) async fn call_for_each(
        &self,
        client: &Commands,
        keys: Vec<String>,
        together: bool,
    ) -> Result<Vec<Value>, BrokerError> {
        let mut calls =
            keys.chunks(if together { TOGETHER } else { 1 }).map(|keys| self.call(client, keys.to_vec(), Vec::new()));
        let mut replies = Vec::with_capacity(keys.len());
        loop {
            let portion: Vec<_> = calls.by_ref().take(PORTION).collect();
            if portion.is_empty() {
                return Ok(replies);
            }
            for reply in try_join_all(portion).await? {
                replies.extend(as_array(reply)?);
            }
        }
    }

    async fn call_by_source(
        &self,
        client: &Commands,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<Value, BrokerError> {
        let code = self.code.lua().cloned().unwrap_or_default();
        client.eval(&code, keys, args).await.map_err(unavailable)
    }
}

pub(super) fn is_unknown(error: &Error) -> bool {
    error.details().starts_with("NOSCRIPT")
}

/// What fred reports: no connection, no answer in time, or a refusal by Redis (`OOM`, `READONLY`, `NOPERM`).
pub(super) fn unavailable(error: Error) -> BrokerError {
    BrokerError::Unavailable(std::sync::Arc::new(error))
}

/// When nobody has the slot that something belongs to.
pub(super) fn absent() -> BrokerError {
    unavailable(Error::new(ErrorKind::Cluster, "nobody has the slot"))
}
