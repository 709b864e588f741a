//! `sibling token issue` and `verify`: tokens of applications' accounts.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};
use jsonwebtoken::{Algorithm, AlgorithmFamily, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::{FAILED, USAGE, keys::PrivateKey, say};
use crate::{
    config::{AccountArgs, Remarks},
    http::{Accounts, Asks, Background, Checker},
    node::{now_seconds, time_text},
    protocol::{Format, Grants, Pattern},
    telemetry,
};

/// What to do with a token.
#[derive(Debug, Subcommand)]
pub(super) enum TokenTool {
    /// Sign a token for an account, as its application does
    Issue(Box<IssueArgs>),
    /// Tell what a token holds, and whether a gateway with these settings takes it
    Verify(Box<VerifyArgs>),
}

/// What a token is to say.
#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// The account's name
    #[arg(long)]
    sub: String,
    /// Patterns of the rooms that it goes for, separated by commas: cams/*,lobby
    #[arg(long, value_delimiter = ',', required = true, value_name = "PATTERNS")]
    rooms: Vec<Pattern>,
    /// The formats that its clients may speak, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "FORMATS")]
    formats: Vec<String>,
    /// What it may do, separated by commas [default: everything about its own pairs]
    #[arg(long, value_delimiter = ',', value_name = "GRANTS")]
    grants: Option<Vec<String>>,
    /// Seconds that it lives
    #[arg(long, default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=86_400 * 366), value_name = "SECONDS")]
    ttl: u64,
    /// A file with the private key that signs, as PEM, or with a secret
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The same, without a file
    #[arg(long, env = "SIBLING_JWT_KEY", hide_env_values = true, value_name = "KEY")]
    jwt_key: Option<String>,
    /// How it is signed [default: as usual for the key]
    #[arg(long, value_name = "ALGORITHM")]
    alg: Option<String>,
    /// Who issues it (iss)
    #[arg(long, env = "SIBLING_JWT_ISSUER", value_name = "TEXT")]
    iss: Option<String>,
    /// Whom it is meant for (aud)
    #[arg(long, env = "SIBLING_JWT_AUDIENCE", value_name = "TEXT")]
    aud: Option<String>,
    /// The key's name in its key set [default: that which sibling keys generate gives it]
    #[arg(long, value_name = "TEXT")]
    kid: Option<String>,
}

/// Which token to look at.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The token [default: from standard input]
    token: Option<String>,
    #[command(flatten)]
    accounts: AccountArgs,
}

pub(super) async fn run(tool: TokenTool) -> ExitCode {
    let done = match tool {
        TokenTool::Issue(args) => issue(&args).map(|token| {
            say(&token);
            ExitCode::SUCCESS
        }),
        TokenTool::Verify(args) => verify(&args).await,
    };
    done.unwrap_or_else(|mistakes| {
        for mistake in mistakes {
            eprintln!("sibling: {mistake}");
        }
        ExitCode::from(USAGE)
    })
}

fn issue(args: &IssueArgs) -> Result<String, Vec<String>> {
    let said = |why: String| vec![why];
    let text = match (&args.key_file, &args.jwt_key) {
        (Some(path), _) => {
            std::fs::read_to_string(path).map_err(|error| said(format!("{}: {error}", path.display())))?
        }
        (None, Some(text)) => text.replace("\\n", "\n"),
        (None, None) => {
            return Err(said("what signs it? --key-file FILE with a private key, or SIBLING_JWT_KEY=secret".into()));
        }
    };
    let (key, algorithms, id) = if text.contains("-----BEGIN") {
        let key = PrivateKey::from_pem(&text).map_err(|why| said(format!("the key {why}")))?;
        (key.encoding().map_err(said)?, key.algorithms(), Some(key.id()))
    } else if text.trim().is_empty() {
        return Err(said("the key is empty".into()));
    } else {
        (EncodingKey::from_secret(text.trim().as_bytes()), AlgorithmFamily::Hmac.algorithms(), None)
    };
    let name = |algorithm: &Algorithm| format!("{algorithm:?}");
    let algorithm = match &args.alg {
        None => algorithms.first(),
        Some(wanted) => algorithms.iter().find(|algorithm| name(algorithm) == *wanted),
    };
    let Some(algorithm) = algorithm else {
        let names: Vec<_> = algorithms.iter().map(name).collect();
        return Err(said(format!("--alg: this key signs with {}", names.join(", "))));
    };
    let mut siblings = json!({"rooms": args.rooms});
    if !args.formats.is_empty() {
        let formats: Option<Vec<_>> = args.formats.iter().map(|name| Format::from_name(name)).collect();
        siblings["formats"] = json!(formats.ok_or_else(|| said("--formats: text, json, binary or any".into()))?);
    }
    if let Some(names) = &args.grants {
        siblings["grants"] = json!(Grants::read(names.clone()).map_err(|failure| said(failure.message))?);
    }
    let now = now_seconds();
    let mut claims = json!({"sub": args.sub, "iat": now, "exp": now + args.ttl, "siblings": siblings});
    for (claim, value) in [("iss", &args.iss), ("aud", &args.aud)] {
        if let Some(value) = value {
            claims[claim] = value.as_str().into();
        }
    }
    let mut header = Header::new(*algorithm);
    header.kid = args.kid.clone().or(id);
    encode(&header, &claims, &key).map_err(|error| said(format!("the token can't be signed: {error}")))
}

async fn verify(args: &VerifyArgs) -> Result<ExitCode, Vec<String>> {
    let mut remarks = Remarks::default();
    let accounts = args.accounts.mean(&[], &mut remarks);
    if matches!(accounts, Accounts::None) && remarks.wrong.is_empty() {
        remarks.wrong.push(
            "what checks it? Set SIBLING_JWT_KEY, SIBLING_JWT_KEY_FILE, SIBLING_JWKS_URL or SIBLING_AUTHORIZE_URL, \
             as for the gateway"
                .into(),
        );
    }
    if !remarks.wrong.is_empty() {
        return Err(remarks.wrong);
    }
    let token = match &args.token {
        Some(token) => token.clone(),
        None => {
            std::io::read_to_string(std::io::stdin()).map_err(|error| vec![format!("standard input: {error}")])?
        }
    };
    let token = token.trim();
    for line in holdings(token) {
        say(&line);
    }
    // Why a server does not answer is told in the log, which goes to standard error here.
    drop(telemetry::start("sibling_sockets=warn", false));
    let checker = Checker::new(&accounts, Background::default());
    match checker.check(token, Asks { action: "token.verify", room: None }).await {
        Ok(authority) => {
            say(&format!("grants: {}", json!(authority.grants)));
            say("accepted");
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            say(&format!("refused: {failure}"));
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// What a token says, true or not.
fn holdings(token: &str) -> Vec<String> {
    let part = |n: usize| -> Option<Value> {
        let bytes = URL_SAFE_NO_PAD.decode(token.split('.').nth(n)?).ok()?;
        serde_json::from_slice(&bytes).ok()
    };
    let (Some(header), Some(claims)) = (part(0), part(1)) else { return Vec::new() };
    let plain =
        |value: &Value| value.as_str().map_or_else(|| value.to_string(), |text| text.escape_debug().to_string());
    let mut lines = Vec::new();
    for (name, value) in [
        ("alg", &header["alg"]),
        ("kid", &header["kid"]),
        ("sub", &claims["sub"]),
        ("iss", &claims["iss"]),
        ("aud", &claims["aud"]),
        ("rooms", &claims["siblings"]["rooms"]),
        ("formats", &claims["siblings"]["formats"]),
    ] {
        if !value.is_null() {
            lines.push(format!("{name}: {}", plain(value)));
        }
    }
    for name in ["nbf", "exp"] {
        if let Some(seconds) = claims[name].as_u64() {
            let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
            lines.push(format!("{name}: {}", time.map(time_text).unwrap_or_default()));
        }
    }
    lines
}
