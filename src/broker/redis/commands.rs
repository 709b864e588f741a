//! Commands that have an answer, sent to the primary that has their key.
//!
//! fred's own client for Redis Cluster is not used: told to `ASK` elsewhere, it reads the next answer of a connection
//! on which others' commands are under way and gives it to nobody, so that theirs are out of place; and with one
//! attempt for each command, which is what keeps a write from being done twice, it ends for good there.
//!
//! A primary that refuses a command has not carried it out, so the same command may be sent to the one that it names,
//! or once more when the fail-over is through. Anything else that goes wrong is told to the caller at once.

use std::time::Duration;

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::ClientLike,
    types::{
        CustomCommand, Value,
        config::{Options, Server},
    },
};
use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::{connect::ANSWER, live::Shared, script::is_unknown};

/// How long a refused command waits, unless it hears that the slots have moved.
const PAUSE: Duration = Duration::from_millis(30);

/// How long a primary that has been replaced may take to answer what it was sent before.
const LAST_ANSWER: Duration = Duration::from_millis(100);

pub(super) struct Commands {
    shared: Shared,
}

/// What a primary says of a command that it did not carry out.
enum Refusal {
    /// Another one has the slot, or this one is none any more (yet).
    Later,
    /// The slot is on its way, and this key has arrived there already.
    Ask(Server),
}

impl Refusal {
    fn read(error: &Error, from: &Server) -> Option<Self> {
        let words = error.details();
        if let Some(ask) = words.strip_prefix("ASK ") {
            let (host, port) = ask.split(' ').nth(1)?.rsplit_once(':')?;
            let host = if host.is_empty() { &*from.host } else { host };
            return Some(Self::Ask(Server::new(host.to_owned(), port.parse().ok()?)));
        }
        ["MOVED ", "READONLY ", "LOADING ", "MASTERDOWN ", "TRYAGAIN ", "CLUSTERDOWN "]
            .iter()
            .any(|word| words.starts_with(word))
            .then_some(Self::Later)
    }
}

fn custom(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, None::<u16>, false)
}

impl Commands {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    /// Sends one command to where `key` is.
    pub(super) async fn send(&self, key: &str, name: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        self.try_to_send(key, name, args).await.inspect_err(|error| {
            // A script that Redis does not know has done nothing, and is sent whole.
            if !is_unknown(error) {
                self.shared.board.unsettle();
            }
        })
    }

    async fn try_to_send(&self, key: &str, name: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let board = &self.shared.board;
        let end = Instant::now() + ANSWER;
        let mut last = Error::new(ErrorKind::IO, "there is no connection to the primary");
        loop {
            let moved = board.moved.notified();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(last);
            }
            // fred would keep it until the connection is back; its slot may be another's before that.
            if let Some(lane) = board.lane(key).filter(|lane| lane.commands.is_connected()) {
                // Values are shared bytes: the copies for another try cost next to nothing.
                let answer = call(&lane.commands, left, false, name, args.clone());
                // A primary that hangs would be waited for in vain, when there has long been another one.
                let given_up = async {
                    lane.gone.cancelled().await;
                    tokio::time::sleep(LAST_ANSWER).await;
                };
                let error = tokio::select! {
                    biased;
                    answer = answer => match answer {
                        Ok(value) => return Ok(value),
                        Err(error) => error,
                    },
                    () = given_up => return Err(Error::new(ErrorKind::Canceled, "the primary has been replaced")),
                };
                last = match Refusal::read(&error, &lane.server) {
                    None => {
                        board.doubts.notify_one();
                        return Err(error);
                    }
                    Some(Refusal::Later) => error,
                    Some(Refusal::Ask(server)) => {
                        match board.lanes().into_iter().find(|lane| lane.server == server) {
                            Some(lane) => match call(&lane.commands, left, true, name, args.clone()).await {
                                Ok(value) => return Ok(value),
                                Err(error) if Refusal::read(&error, &server).is_none() => return Err(error),
                                Err(error) => error,
                            },
                            // It has no slots yet, and so no lane: in a moment the slot is all there.
                            None => error,
                        }
                    }
                };
            }
            board.doubts.notify_one();
            drop(tokio::time::timeout(PAUSE.min(left), moved).await);
        }
    }

    /// Sends many commands at once, each to where its key is; all must succeed.
    pub(super) async fn send_all(
        &self,
        commands: impl IntoIterator<Item = (String, &'static str, Vec<Value>)>,
    ) -> Result<Vec<Value>, Error> {
        let each = commands.into_iter().map(|(key, name, args)| async move { self.send(&key, name, args).await });
        try_join_all(each).await
    }

    pub(super) async fn evalsha(&self, digest: &str, keys: Vec<String>, args: Vec<Value>) -> Result<Value, Error> {
        self.script("EVALSHA", digest.into(), keys, args).await
    }

    pub(super) async fn eval(&self, code: &str, keys: Vec<String>, args: Vec<Value>) -> Result<Value, Error> {
        self.script("EVAL", code.into(), keys, args).await
    }

    async fn script(
        &self,
        name: &'static str,
        script: Value,
        keys: Vec<String>,
        args: Vec<Value>,
    ) -> Result<Value, Error> {
        let key = keys.first().cloned().unwrap_or_default();
        let mut all = Vec::with_capacity(2 + keys.len() + args.len());
        all.extend([script, keys.len().to_string().into()]);
        all.extend(keys.into_iter().map(Value::from));
        all.extend(args);
        self.send(&key, name, all).await
    }

    pub(super) async fn get(&self, key: String) -> Result<Value, Error> {
        self.send(&key, "GET", vec![key.as_str().into()]).await
    }

    pub(super) async fn hget(&self, key: String, field: &str) -> Result<Value, Error> {
        self.send(&key, "HGET", vec![key.as_str().into(), field.into()]).await
    }

    pub(super) async fn lrange(&self, key: String, from: u64, to: u64) -> Result<Value, Error> {
        self.send(&key, "LRANGE", vec![key.as_str().into(), from.to_string().into(), to.to_string().into()]).await
    }

    pub(super) async fn zremrangebylex(&self, key: String, [from, to]: [String; 2]) -> Result<(), Error> {
        let args = vec![key.as_str().into(), from.into(), to.into()];
        self.send(&key, "ZREMRANGEBYLEX", args).await.map(drop)
    }
}

/// Sends a command over one connection, once.
async fn call(
    client: &Client,
    left: Duration,
    asking: bool,
    name: &'static str,
    args: Vec<Value>,
) -> Result<Value, Error> {
    let options = Options { timeout: Some(left), fail_fast: true, max_attempts: Some(1), ..Options::default() };
    if !asking {
        return client.with_options(&options).custom(custom(name), args).await;
    }
    // What allows a command where its slot is not yet must come right before it.
    let pair = client.pipeline();
    pair.custom::<(), Value>(custom("ASKING"), Vec::new()).await?;
    pair.custom::<(), Value>(custom(name), args).await?;
    pair.last().await
}
