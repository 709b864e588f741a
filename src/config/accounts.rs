//! Settings of accounts: who checks the tokens of applications.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::http::{Accounts, Endpoint, Key, Rules};

/// The shortest secret that nobody can guess, in bytes.
const GOOD_SECRET: usize = 32;

/// Who checks the tokens of applications, as it is said.
#[derive(Debug, Clone, Default, Args)]
pub struct AccountArgs {
    /// What verifies applications' tokens: a secret (HS256, HS384, HS512), or a public key as PEM (RSA, P-256, P-384,
    /// Ed25519)
    #[arg(long, env = "SIBLING_JWT_KEY", hide_env_values = true, value_name = "KEY")]
    pub jwt_key: Option<String>,
    /// A file with that key
    #[arg(long, env = "SIBLING_JWT_KEY_FILE", value_name = "FILE")]
    pub jwt_key_file: Option<PathBuf>,
    /// Where the keys are that verify applications' tokens, as a JWKS
    #[arg(long, env = "SIBLING_JWKS_URL", hide_env_values = true, value_name = "URL")]
    pub jwks_url: Option<String>,
    /// Seconds that those keys are used before they are fetched again [default: 300]
    #[arg(long, env = "SIBLING_JWKS_SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400), value_name = "SECONDS")]
    pub jwks_seconds: Option<u64>,
    /// Who must have issued applications' tokens (iss)
    #[arg(long, env = "SIBLING_JWT_ISSUER", value_name = "TEXT")]
    pub jwt_issuer: Option<String>,
    /// Whom they must be meant for (aud)
    #[arg(long, env = "SIBLING_JWT_AUDIENCE", value_name = "TEXT")]
    pub jwt_audience: Option<String>,
    /// A server that decides on tokens instead: it is sent {token, action, room} and answers {allow, sub, rooms, …}
    #[arg(long, env = "SIBLING_AUTHORIZE_URL", hide_env_values = true, value_name = "URL")]
    pub authorize_url: Option<String>,
    /// Seconds that its answer may take [default: 3]
    #[arg(long, env = "SIBLING_AUTHORIZE_SECONDS", value_parser = clap::value_parser!(u64).range(1..=60), value_name = "SECONDS")]
    pub authorize_seconds: Option<u64>,
}

/// What is wrong with settings, and what is not advisable.
#[derive(Debug, Default)]
pub struct Remarks {
    /// What can't be meant.
    pub wrong: Vec<String>,
    /// What works and is not advisable.
    pub warnings: Vec<String>,
}

impl AccountArgs {
    /// Finds what the settings mean. `others` are the secrets of other settings, with their names: one that served two
    /// purposes would let whoever has it for one do the other, too.
    #[must_use]
    pub fn mean(&self, others: &[(&str, &[u8])], remarks: &mut Remarks) -> Accounts {
        let ways = [
            ("SIBLING_JWT_KEY", self.jwt_key.is_some()),
            ("SIBLING_JWT_KEY_FILE", self.jwt_key_file.is_some()),
            ("SIBLING_JWKS_URL", self.jwks_url.is_some()),
            ("SIBLING_AUTHORIZE_URL", self.authorize_url.is_some()),
        ];
        let set: Vec<_> = ways.into_iter().filter_map(|(name, set)| set.then_some(name)).collect();
        if set.len() > 1 {
            remarks.wrong.push(format!("{} each say who checks tokens: set one of them", set.join(" and ")));
            return Accounts::None;
        }
        let mut needs = |setting: &str, set: bool, needed: &str, met: bool| {
            if set && !met {
                remarks.wrong.push(format!("{setting} means nothing without {needed}"));
            }
        };
        let by_key = self.jwt_key.is_some() || self.jwt_key_file.is_some() || self.jwks_url.is_some();
        let keys = "SIBLING_JWT_KEY or SIBLING_JWKS_URL";
        needs("SIBLING_JWT_ISSUER", self.jwt_issuer.is_some(), keys, by_key);
        needs("SIBLING_JWT_AUDIENCE", self.jwt_audience.is_some(), keys, by_key);
        needs("SIBLING_JWKS_SECONDS", self.jwks_seconds.is_some(), "SIBLING_JWKS_URL", self.jwks_url.is_some());
        let authorizer = self.authorize_url.is_some();
        needs("SIBLING_AUTHORIZE_SECONDS", self.authorize_seconds.is_some(), "SIBLING_AUTHORIZE_URL", authorizer);
        for (setting, value) in
            [("SIBLING_JWT_ISSUER", &self.jwt_issuer), ("SIBLING_JWT_AUDIENCE", &self.jwt_audience)]
        {
            if value.as_ref().is_some_and(String::is_empty) {
                remarks.wrong.push(format!("{setting} is empty: leave it unset for any"));
            }
        }
        let rules = Rules { issuer: self.jwt_issuer.clone(), audience: self.jwt_audience.clone() };
        let found = if let Some(text) = &self.jwt_key {
            read_key("SIBLING_JWT_KEY", text, others, remarks).map(|key| Accounts::Key(key, rules))
        } else if let Some(path) = &self.jwt_key_file {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
            text.and_then(|text| read_key("SIBLING_JWT_KEY_FILE", &text, others, remarks))
                .map(|key| Accounts::Key(key, rules))
        } else if let Some(url) = &self.jwks_url {
            if self.jwt_audience.is_none() {
                remarks.warnings.push(
                    "without SIBLING_JWT_AUDIENCE, tokens that the same keys sign for other services are taken, too, \
                     if they have a claim siblings"
                        .into(),
                );
            }
            let fresh = Duration::from_secs(self.jwks_seconds.unwrap_or(300));
            read_url("SIBLING_JWKS_URL", url, "keys that others can exchange on the way", remarks)
                .map(|endpoint| Accounts::KeySet(endpoint, fresh, rules))
        } else if let Some(url) = &self.authorize_url {
            let patience = Duration::from_secs(self.authorize_seconds.unwrap_or(3));
            read_url("SIBLING_AUTHORIZE_URL", url, "tokens that others can read on the way", remarks)
                .map(|endpoint| Accounts::Authorizer(endpoint, patience))
        } else {
            Ok(Accounts::None)
        };
        found.unwrap_or_else(|mistake| {
            remarks.wrong.push(mistake);
            Accounts::None
        })
    }
}

fn read_key(setting: &str, text: &str, others: &[(&str, &[u8])], remarks: &mut Remarks) -> Result<Key, String> {
    let text = text.trim();
    let key = Key::read(text).map_err(|why| format!("{setting} {why}"))?;
    if let Some((other, _)) = others.iter().find(|(_, secret)| *secret == text.as_bytes()) {
        return Err(format!("{setting} is the same secret as {other}: whoever signs tokens could be the gateway"));
    }
    if key.is_secret() && text.len() < GOOD_SECRET {
        remarks.warnings.push(format!(
            "the secret in {setting} is shorter than {GOOD_SECRET} bytes: sibling keys generate makes a good one"
        ));
    }
    Ok(key)
}

fn read_url(setting: &str, url: &str, danger: &str, remarks: &mut Remarks) -> Result<Endpoint, String> {
    let endpoint = Endpoint::new(url).map_err(|why| format!("{setting} {why}"))?;
    if endpoint.is_open_to_others() {
        remarks.warnings.push(format!("{setting} is not https: {danger}"));
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(args: AccountArgs) -> (Accounts, Remarks) {
        let mut remarks = Remarks::default();
        let accounts = args.mean(&[("SIBLING_SECRET", b"a ticket secret that is long enough")], &mut remarks);
        (accounts, remarks)
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        let none = AccountArgs::default;
        let key = || AccountArgs { jwt_key: Some("a secret of more than thirty-two bytes".into()), ..none() };
        let table = [
            (
                AccountArgs { jwks_url: Some("http://127.0.0.1:1/".into()), ..key() },
                "SIBLING_JWT_KEY and SIBLING_JWKS_URL",
            ),
            (AccountArgs { authorize_url: Some("http://127.0.0.1:1/".into()), ..key() }, "SIBLING_AUTHORIZE_URL"),
            (AccountArgs { jwt_key_file: Some("x".into()), ..key() }, "SIBLING_JWT_KEY_FILE"),
            (AccountArgs { jwks_seconds: Some(9), ..key() }, "SIBLING_JWKS_SECONDS"),
            (AccountArgs { authorize_seconds: Some(9), ..key() }, "SIBLING_AUTHORIZE_SECONDS"),
            (AccountArgs { jwt_issuer: Some("me".into()), ..none() }, "SIBLING_JWT_ISSUER"),
            (AccountArgs { jwt_audience: Some("me".into()), ..none() }, "SIBLING_JWT_AUDIENCE"),
            (AccountArgs { jwt_audience: Some(String::new()), ..key() }, "empty"),
            (AccountArgs { jwt_key: Some(" ".into()), ..none() }, "empty"),
            (AccountArgs { jwt_key: Some("{\"kty\":\"oct\"}".into()), ..none() }, "PEM"),
            (AccountArgs { jwt_key: Some("a ticket secret that is long enough".into()), ..none() }, "SIBLING_SECRET"),
            (AccountArgs { jwt_key_file: Some("/no/such/file".into()), ..none() }, "/no/such/file"),
            (AccountArgs { jwks_url: Some("keys.example.org".into()), ..none() }, "SIBLING_JWKS_URL"),
        ];
        for (args, word) in table {
            let (_, remarks) = mean(args.clone());
            assert!(remarks.wrong.iter().any(|said| said.contains(word)), "{args:?}: {remarks:?}");
        }
        let (accounts, remarks) = mean(key());
        assert!(matches!(accounts, Accounts::Key(..)) && remarks.wrong.is_empty() && remarks.warnings.is_empty());
        let (_, remarks) = mean(AccountArgs { jwt_key: Some("short".into()), ..none() });
        assert!(remarks.warnings[0].contains("32 bytes"));
        let (_, remarks) = mean(AccountArgs { authorize_url: Some("http://example.org/".into()), ..none() });
        assert!(remarks.warnings[0].contains("not https"));
    }
}
