//! A key set elsewhere: fetched when it is needed, kept, and kept on while its server is away.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;

use super::{
    fetch::{Background, Endpoint, Remote},
    keys::{Jwk, Key},
    tokens::{Head, refuse},
};
use crate::protocol::{Failure, Fault};

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest set, in bytes.
const LARGEST: usize = 256 << 10;
/// The most keys of a set that are used.
const MOST_KEYS: usize = 64;
/// How long the server is left alone after it failed, and after it was asked for a key that nobody knew: strangers can
/// make up names of keys.
const PAUSE: Duration = Duration::from_secs(10);
/// How long the keys stay in use when their server does not answer.
const OUTAGE: Duration = Duration::from_secs(24 * 3_600);

/// The keys at an address.
pub(super) struct KeySet {
    shared: Arc<Shared>,
    /// How long the keys are used before they are fetched again.
    fresh: Duration,
    background: Background,
    /// Held by whoever fetches: one at a time.
    flight: Arc<tokio::sync::Mutex<()>>,
}

struct Shared {
    remote: Remote,
    state: Mutex<State>,
}

#[derive(Clone, Default)]
struct State {
    keys: Arc<[Key]>,
    /// When they were fetched.
    fetched: Option<Instant>,
    /// When it was last tried in vain, since then.
    failed: Option<Instant>,
    /// When it was last asked for an unknown key.
    searched: Option<Instant>,
}

/// What is asked of the server.
#[derive(Clone, Copy, PartialEq)]
enum Reason {
    /// The keys are old.
    Age,
    /// A key is unknown.
    Search,
}

impl State {
    fn is_due(&self, reason: Reason, fresh: Duration) -> bool {
        let over = |since: Option<Instant>, pause| since.is_none_or(|since| since.elapsed() >= pause);
        over(self.failed, PAUSE)
            && match reason {
                Reason::Age => over(self.fetched, fresh),
                Reason::Search => over(self.searched, PAUSE),
            }
    }

    fn usable(&self) -> bool {
        self.fetched.is_some_and(|fetched| fetched.elapsed() < OUTAGE)
    }

    /// The key of this name; without a name, the only one for the algorithm.
    fn find(&self, head: &Head) -> Option<Key> {
        if !self.usable() {
            return None;
        }
        if head.kid.is_some() {
            return self.keys.iter().find(|key| key.id == head.kid).cloned();
        }
        let mut fitting = self.keys.iter().filter(|key| head.fits(key));
        fitting.next().filter(|_| fitting.next().is_none()).cloned()
    }
}

impl KeySet {
    pub(super) fn new(endpoint: &Endpoint, fresh: Duration, background: Background) -> Self {
        let remote = Remote::new(endpoint, PATIENCE, LARGEST, background.clone());
        let shared = Arc::new(Shared { remote, state: Mutex::default() });
        Self { shared, fresh, background, flight: Arc::default() }
    }

    /// The key that a token was signed with, as its header says.
    ///
    /// # Errors
    /// [`Fault::Unauthorized`] when there is none, [`Fault::AuthorizerUnavailable`] when that can't be said.
    pub(super) async fn key(&self, head: &Head) -> Result<Key, Failure> {
        self.refresh(Reason::Age).await;
        if let Some(key) = self.state().find(head) {
            return Ok(key);
        }
        self.refresh(Reason::Search).await;
        let state = self.state();
        match state.find(head) {
            Some(key) => Ok(key),
            None if state.failed.is_some() => {
                let why = "the key set can't be had at present, and the token's key is not known: try again";
                Err(Failure::new(Fault::AuthorizerUnavailable, why))
            }
            None if head.kid.is_some() => refuse("the token's key (kid) is not in the key set"),
            None => refuse("the token does not name its key (kid), and the key set has not just one that fits"),
        }
    }

    fn state(&self) -> State {
        self.shared.state.lock().clone()
    }

    /// Fetches the set, if it is due. While the server is away, what is there is used without waiting for it.
    async fn refresh(&self, reason: Reason) {
        let before = self.state();
        if !before.is_due(reason, self.fresh) {
            return;
        }
        let away = reason == Reason::Age && before.failed.is_some() && before.usable();
        let flight = Arc::clone(&self.flight);
        let flight = if away {
            let Ok(flight) = flight.try_lock_owned() else { return };
            flight
        } else {
            flight.lock_owned().await
        };
        // Others may have fetched it meanwhile.
        if !self.state().is_due(reason, self.fresh) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        // Not by whoever asked: a client that goes away would break it off, and that of all others who wait.
        let fetching = self.background.run(async move {
            shared.fetch(reason).await;
            drop(flight);
        });
        if !away {
            drop(fetching.await);
        }
    }
}

impl Shared {
    async fn fetch(&self, reason: Reason) {
        let answer = self.remote.get().await.map_err(|error| error.sentence());
        let keys = answer.and_then(|bytes| read(&bytes));
        let mut state = self.state.lock();
        let now = Some(Instant::now());
        if reason == Reason::Search {
            state.searched = now;
        }
        match keys {
            Ok(keys) => *state = State { keys, fetched: now, failed: None, searched: state.searched },
            Err(why) => {
                tracing::warn!(host = self.remote.host(), why, "the key set of tokens could not be fetched");
                state.failed = now;
            }
        }
    }
}

/// Reads a set. A key that can't be used here is no reason not to use the others.
fn read(bytes: &[u8]) -> Result<Arc<[Key]>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(bytes).map_err(|_| "the answer is no key set: {\"keys\": [...]}")?;
    let (mut keys, mut left) = (Vec::new(), 0);
    for value in set.keys {
        let jwk = serde_json::from_value::<Jwk>(value).map_err(|error| error.to_string());
        match jwk.and_then(|jwk| Key::from_jwk(&jwk)) {
            Ok(key) if keys.len() < MOST_KEYS => keys.push(key),
            Ok(_) => left += 1,
            Err(why) => tracing::debug!(why, "a key of the key set is not used"),
        }
    }
    if left > 0 {
        tracing::warn!(left, most = MOST_KEYS, "the key set has too many keys: the last ones are not used");
    }
    if keys.is_empty() { Err("the key set has no key that can be used here".into()) } else { Ok(keys.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        r#"{"kty":"OKP","crv":"Ed25519","kid":"KID","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    fn set(keys: &[String]) -> Vec<u8> {
        format!("{{\"keys\":[{}]}}", keys.join(",")).into_bytes()
    }

    #[test]
    fn a_key_that_is_of_no_use_does_not_spoil_the_others() {
        let odd = [r#"{"kty":"DSA"}"#, r#"{"kty":7}"#, "null", r#"{"kty":"oct","k":"c2VjcmV0"}"#].map(String::from);
        assert!(read(&set(&odd)).is_err(), "a set without a key");
        assert_eq!(read(&set(&[&odd[..], &[KEY.into()]].concat())).unwrap().len(), 1);
        assert_eq!(read(&set(&vec![KEY.to_owned(); 1_000])).unwrap().len(), MOST_KEYS);
        for odd in ["", "{}", "[]", "<html>", r#"{"keys":{}}"#] {
            assert!(read(odd.as_bytes()).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_token_without_a_name_of_a_key_gets_the_only_one() {
        let head = |json: &str| serde_json::from_str::<Head>(json).unwrap();
        let mut state = State { fetched: Some(Instant::now()), ..State::default() };
        state.keys = read(&set(&[KEY.replace("KID", "a")])).unwrap();
        assert!(state.find(&head(r#"{"alg":"EdDSA"}"#)).is_some());
        assert!(state.find(&head(r#"{"alg":"EdDSA","kid":"a"}"#)).is_some());
        assert!(state.find(&head(r#"{"alg":"EdDSA","kid":"../a"}"#)).is_none());
        assert!(state.find(&head(r#"{"alg":"ES256"}"#)).is_none());
        state.keys = read(&set(&[KEY.replace("KID", "a"), KEY.replace("KID", "b")])).unwrap();
        assert!(state.find(&head(r#"{"alg":"EdDSA"}"#)).is_none());
        assert!(state.find(&head(r#"{"alg":"EdDSA","kid":"b"}"#)).is_some());
        let long_ago = Instant::now().checked_sub(OUTAGE);
        state.fetched = long_ago;
        assert!(long_ago.is_none() || state.find(&head(r#"{"alg":"EdDSA","kid":"b"}"#)).is_none());
    }
}
