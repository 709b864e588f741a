//! The authorizer: an application's own server that decides on tokens.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use serde::Deserialize;
use serde_json::json;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    auth::Asks,
    fetch::{Background, Endpoint, Remote},
    tokens::Said,
};
use crate::protocol::{Authority, Failure, Fault, Format, Pattern};

/// The largest answer, in bytes.
const LARGEST: usize = 64 << 10;
/// How many it is asked at a time; more wait, within the same time-out.
const MOST: usize = 64;
/// The longest reason that is passed on, in bytes.
const LONGEST_REASON: usize = 100;

/// Asks the authorizer.
pub(super) struct Authorizer {
    remote: Remote,
    patience: Duration,
    places: Semaphore,
    /// Whether it failed when it was last asked: the log hears of the first time.
    failing: AtomicBool,
}

/// The authorizer's answer.
enum Decision {
    Allow(Authority),
    Deny(Option<String>),
}

impl Authorizer {
    pub(super) fn new(endpoint: &Endpoint, patience: Duration, background: Background) -> Self {
        let remote = Remote::new(endpoint, patience, LARGEST, background);
        Self { remote, patience, places: Semaphore::new(MOST), failing: AtomicBool::new(false) }
    }

    /// What the authorizer says of a token.
    ///
    /// # Errors
    /// [`Fault::Forbidden`] when it says no, [`Fault::AuthorizerUnavailable`] when it says nothing that can be read.
    pub(super) async fn decide(&self, token: &str, asks: Asks<'_>) -> Result<Authority, Failure> {
        let question = json!({"token": token, "action": asks.action, "room": asks.room}).to_string();
        let asking = async {
            let _place = self.places.acquire().await.map_err(|error| error.to_string())?;
            let answer = self.remote.post(question).await.map_err(|error| error.sentence())?;
            read(&answer)
        };
        let decision = timeout(self.patience, asking).await.unwrap_or_else(|_| Err("no answer in time".into()));
        let failed = decision.is_err();
        let before = self.failing.swap(failed, Relaxed);
        match decision {
            Ok(Decision::Allow(authority)) => Ok(authority),
            Ok(Decision::Deny(reason)) => {
                let mut reason = reason.unwrap_or_else(|| "the token is not good for this".into());
                reason.retain(|c| !c.is_control());
                reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
                Err(Failure::new(Fault::Forbidden, format!("refused: {reason}")))
            }
            Err(why) => {
                if !before {
                    tracing::warn!(host = self.remote.host(), why, "the authorizer fails: tokens are refused");
                }
                Err(Failure::new(
                    Fault::AuthorizerUnavailable,
                    "the authorizer does not answer as it should: try again",
                ))
            }
        }
    }
}

/// Reads an answer as strictly as a token: whatever is in doubt is no permission.
fn read(answer: &[u8]) -> Result<Decision, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Answer {
        allow: bool,
        reason: Option<String>,
        sub: Option<String>,
        rooms: Option<Vec<Pattern>>,
        formats: Option<Vec<Format>>,
        grants: Option<Vec<String>>,
    }
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|error| format!("the answer can't be read: {error}"))?;
    if !answer.allow {
        return Ok(Decision::Deny(answer.reason));
    }
    let (Some(sub), Some(rooms)) = (answer.sub, answer.rooms) else {
        return Err("the answer allows, and does not say sub and rooms".into());
    };
    let said = Said { rooms, formats: answer.formats.unwrap_or_default(), grants: answer.grants };
    Ok(Decision::Allow(said.authority(sub)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_doubt_is_no_permission() {
        let allowed = read(br#"{"allow":true,"sub":"shop","rooms":["cams/*"],"grants":["client.*"]}"#);
        assert!(matches!(allowed, Ok(Decision::Allow(said)) if said.covers(&"cams/1".parse().unwrap())));
        let denied = read(br#"{"allow":false,"reason":"closed","rooms":[]}"#);
        assert!(matches!(denied, Ok(Decision::Deny(Some(why))) if why == "closed"));
        for odd in [
            "",
            "yes",
            "true",
            "{}",
            r#"{"allow":"true","sub":"a","rooms":[]}"#,
            r#"{"allow":1,"sub":"a","rooms":[]}"#,
            r#"{"allow":true}"#,
            r#"{"allow":true,"sub":"a"}"#,
            r#"{"allow":true,"rooms":["*"]}"#,
            r#"{"allow":true,"sub":"","rooms":["*"]}"#,
            r#"{"allow":true,"sub":"a","rooms":["a b"]}"#,
            r#"{"allow":true,"sub":"a","rooms":[],"grant":[]}"#,
            r#"{"allow":true,"sub":"a","rooms":[],"grants":["all"]}"#,
            r#"{"allow":true,"sub":"a","rooms":[],"formats":["smoke"]}"#,
            r#"{"allow":false,"allow":true,"sub":"a","rooms":[]}"#,
            r#"{"allow":true,"sub":"a","rooms":[]} {}"#,
        ] {
            assert!(read(odd.as_bytes()).is_err(), "{odd}");
        }
    }
}
