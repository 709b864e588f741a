//! Tokens of applications' accounts: what they say, and whether it is so.
//!
//! A token may live as long as its application likes: it ends at its `exp`, or when its key is not known any more.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, Validation, decode, errors::ErrorKind};
use serde::Deserialize;
use serde_json::Value;

use super::keys::Key;
use crate::protocol::{Account, Authority, Failure, Fault, Format, Grants, Pattern, Ticket};

/// The longest token that is looked at, in bytes.
pub(super) const LONGEST: usize = 8 << 10;
/// How far the clocks of those who sign may be off, in seconds.
const LEEWAY: u64 = 5;
/// The most patterns of rooms that an account has.
const MOST_ROOMS: usize = 64;
/// The longest name of an account, in bytes.
const LONGEST_NAME: usize = 256;

/// What a token must say beside what is said in its `siblings`.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Who must have issued it; `None` is anybody who has the key.
    pub issuer: Option<String>,
    /// Whom it must be meant for; `None` is anybody.
    pub audience: Option<String>,
}

/// What a token's header says of how it is signed. Everything else in it is passed over, but for what its maker calls
/// critical; its `kid` is a name to look up in a list, and nothing else.
#[derive(Deserialize)]
pub(super) struct Head {
    alg: Algorithm,
    #[serde(default)]
    pub(super) kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

/// What an application says of an account: in its tokens, or as their authorizer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Said {
    pub(super) rooms: Vec<Pattern>,
    #[serde(default)]
    pub(super) formats: Vec<Format>,
    #[serde(default)]
    pub(super) grants: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    #[serde(default)]
    siblings: Value,
}

pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::new(Fault::Unauthorized, why))
}

/// That a token is worth a look: it is not huge, and it is none of the gateway's own, which open pairs and nothing else
/// (and are nobody else's business).
pub(super) fn check_shape(token: &str) -> Result<(), Failure> {
    if token.len() > LONGEST {
        return refuse(format!("the token is longer than {LONGEST} bytes"));
    }
    #[derive(Deserialize)]
    struct Issued {
        iss: String,
    }
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    match claims.and_then(|claims| serde_json::from_slice::<Issued>(&claims).ok()) {
        Some(issued) if issued.iss == Ticket::ISSUER => {
            refuse("this is a ticket, which opens its pair: here, the token of an account is needed")
        }
        _ => Ok(()),
    }
}

impl Head {
    pub(super) fn of(token: &str) -> Result<Self, Failure> {
        let mut parts = token.split('.');
        let (Some(head), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return refuse("the token is no JWT: three parts of base64url, with dots between them");
        };
        let Ok(head) = URL_SAFE_NO_PAD.decode(head) else {
            return refuse("the token's header is not base64url");
        };
        let head: Self = match serde_json::from_slice(&head) {
            Ok(head) => head,
            Err(_) => return refuse("the token's header has no algorithm (alg) that is known here"),
        };
        if head.crit.is_some() {
            return refuse("the token's header has something critical (crit) that is not known here");
        }
        Ok(head)
    }

    /// Whether the key is for the algorithm.
    pub(super) fn fits(&self, key: &Key) -> bool {
        key.algorithms.contains(&self.alg)
    }
}

impl Rules {
    /// Checks a token's signature and what it says.
    ///
    /// # Errors
    /// [`Fault::Unauthorized`] with a sentence that tells which check failed, and nothing of the token.
    pub(super) fn read(&self, token: &str, head: &Head, key: &Key) -> Result<Authority, Failure> {
        if !head.fits(key) {
            let names: Vec<_> = key.algorithms.iter().map(|algorithm| format!("{algorithm:?}")).collect();
            return refuse(format!(
                "the token's algorithm (alg) does not fit its key, which is for {}",
                names.join(", ")
            ));
        }
        // The library's own defaults take a minute's leeway, ignore nbf, and are content with a token that has no aud.
        let mut rules = Validation::new(head.alg);
        rules.leeway = LEEWAY;
        rules.validate_nbf = true;
        let mut needed = vec!["exp", "sub"];
        if let Some(issuer) = &self.issuer {
            rules.set_issuer(&[issuer]);
            needed.push("iss");
        }
        match &self.audience {
            Some(audience) => {
                rules.set_audience(&[audience]);
                needed.push("aud");
            }
            None => rules.validate_aud = false,
        }
        rules.set_required_spec_claims(&needed);
        let value: Value = decode(token, &key.decoding, &rules).map_err(|error| why_not(error.kind()))?.claims;
        let Claims { sub, exp, siblings } = serde_json::from_value(value)
            .map_err(|_| Failure::new(Fault::Unauthorized, "the token does not say whose it is (sub)"))?;
        if siblings.is_null() {
            return refuse("the token has no claim siblings: {\"rooms\": [patterns]}");
        }
        let said: Said = serde_path_to_error::deserialize(siblings).map_err(|error| {
            Failure::new(Fault::Unauthorized, format!("the token's {}", Failure::misfit("siblings", &error)))
        })?;
        let authority = said.authority(sub).or_else(|why| refuse(format!("the token's {why}")))?;
        let until = Duration::try_from_secs_f64(exp).ok().map(|since| since.as_secs());
        Ok(Authority { until, ..authority })
    }
}

/// Which check failed.
fn why_not(kind: &ErrorKind) -> Failure {
    let needs = |claim: &str| match claim {
        "exp" => "the token does not say when it ends (exp, in seconds since 1970)",
        "sub" => "the token does not say whose it is (sub)",
        "iss" => "the token does not say who issued it (iss)",
        "aud" => "the token does not say whom it is meant for (aud)",
        _ => "the token is not valid from a time that can be read (nbf, in seconds since 1970)",
    };
    let why = match kind {
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => needs(claim),
        ErrorKind::ExpiredSignature => "the token has expired (exp)",
        ErrorKind::ImmatureSignature => "the token is not valid yet (nbf)",
        ErrorKind::InvalidIssuer => "the token is from another issuer (iss)",
        ErrorKind::InvalidAudience => "the token is meant for somebody else (aud)",
        ErrorKind::InvalidAlgorithm => "the token's algorithm (alg) does not fit its key",
        ErrorKind::Json(_) | ErrorKind::Utf8(_) => "the token's header or its claims are no JSON that can be read",
        ErrorKind::Base64(_) => "the token is not base64url",
        _ => "the token's signature is not that of the key that is set here",
    };
    Failure::new(Fault::Unauthorized, why)
}

impl Said {
    /// What is granted to the account of this name.
    ///
    /// # Errors
    /// A phrase that names the field.
    pub(super) fn authority(self, name: String) -> Result<Authority, String> {
        if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
            return Err(format!("sub: 1 to {LONGEST_NAME} bytes without control characters"));
        }
        if self.rooms.len() > MOST_ROOMS {
            return Err(format!("siblings.rooms: at most {MOST_ROOMS} patterns"));
        }
        let mut formats = self.formats;
        let mut seen = Vec::new();
        formats.retain(|format| !seen.contains(format) && (seen.push(*format), true).1);
        let grants = match self.grants {
            None => Grants::of_a_sibling(),
            Some(names) => Grants::read(names).map_err(|failure| format!("siblings.{failure}"))?,
        };
        Ok(Authority { account: Account::Named(name), rooms: self.rooms, formats, grants, until: None })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(value: Value) -> Result<Authority, String> {
        let said: Said = serde_json::from_value(value).map_err(|error| error.to_string())?;
        said.authority("shop".into())
    }

    #[test]
    fn what_is_not_said_is_what_a_sibling_has() {
        let authority = said(json!({"rooms": ["cams/*"], "formats": ["text", "json", "text"]})).unwrap();
        assert_eq!(authority.account, Account::Named("shop".into()));
        assert_eq!(authority.grants, Grants::of_a_sibling());
        assert_eq!(authority.formats, [Format::Text, Format::Json]);
        assert_eq!(said(json!({"rooms": [], "grants": []})).unwrap().grants, Grants::default());
        for odd in [
            json!({}),
            json!({"rooms": "cams/*"}),
            json!({"rooms": ["a b"]}),
            json!({"rooms": vec!["a"; MOST_ROOMS + 1]}),
            json!({"rooms": [], "grants": ["all"]}),
            json!({"rooms": [], "formats": ["smoke"]}),
            json!({"rooms": [], "grant": ["*"]}),
        ] {
            assert!(said(odd.clone()).is_err(), "{odd}");
        }
        let named = |name: String| Said { rooms: Vec::new(), formats: Vec::new(), grants: None }.authority(name);
        for odd in [String::new(), "a\nb".into(), "x".repeat(LONGEST_NAME + 1)] {
            assert!(named(odd.clone()).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn a_header_is_read_only_for_what_is_needed() {
        let head = |json: &str| Head::of(&format!("{}.e30.x", URL_SAFE_NO_PAD.encode(json)));
        let good = head(r#"{"alg":"ES256","kid":"../x","jku":"http://localhost/","x":{"y":1}}"#).unwrap();
        assert_eq!(good.kid.as_deref(), Some("../x"));
        for odd in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"NONE"}"#,
            r#"{"alg":"hs256"}"#,
            r#"{"alg":["HS256"]}"#,
            r#"{"alg":"ES256","alg":"HS256"}"#,
            r#"{"alg":"ES256","crit":[]}"#,
            r#"{"alg":"ES256","kid":7}"#,
            "{}",
            "",
        ] {
            assert!(head(odd).is_err(), "{odd}");
        }
        for odd in ["", ".", "..", "a.b", "a.b.c.d"] {
            assert!(Head::of(odd).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn tickets_and_monsters_are_not_looked_at() {
        let issued = |by: &str| format!("x.{}.x", URL_SAFE_NO_PAD.encode(json!({"iss": by}).to_string()));
        assert!(check_shape(&issued("sibling-sockets")).unwrap_err().message.contains("ticket"));
        assert!(check_shape(&issued("a shop")).is_ok() && check_shape("opaque").is_ok());
        assert!(check_shape(&"x".repeat(LONGEST + 1)).unwrap_err().message.contains("longer"));
    }
}
