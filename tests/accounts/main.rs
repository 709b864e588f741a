//! Accounts: whose token is taken, which are refused and why, and what happens while those who know are away.

#[path = "../support/mod.rs"]
mod support;

mod away;
mod tokens;
mod tools;

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rsa::{pkcs1::EncodeRsaPrivateKey as _, pkcs8::DecodePrivateKey as _};
use serde_json::{Value, json};
use support::{Cluster, Dial, Gateway, PATIENCE, Reply, Settings};

const SECRET: &str = "the secret of an application for acceptance tests only";
const ALL_RSA: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

/// Runs `sibling`, with no settings but these.
fn sibling(args: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sibling"));
    for (name, _) in std::env::vars() {
        if name.starts_with("SIBLING_") {
            command.env_remove(name);
        }
    }
    command.args(args).envs(settings.iter().copied()).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the gateway's binary runs");
    let started = Instant::now();
    while child.try_wait().expect("a child to wait for").is_none() {
        if started.elapsed() > PATIENCE {
            drop(child.kill());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output")
}

/// What a tool prints, when all went well.
fn printed(args: &[&str], settings: &[(&str, &str)]) -> String {
    let done = sibling(args, settings);
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("text").trim_end().to_owned()
}

/// An application's key pair, in files.
struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    fn new(kind: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_str().expect("a plain path");
        printed(&["keys", "generate", "--kind", kind, "--out", path], &[]);
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).expect("a written file")
    }

    /// The public half, as a key of a key set.
    fn jwk(&self) -> Value {
        let set: Value = serde_json::from_str(&self.text("jwks.json")).expect("a key set");
        set["keys"][0].clone()
    }

    fn kid(&self) -> String {
        self.jwk()["kid"].as_str().expect("a key's name").to_owned()
    }

    fn signing(&self, algorithm: Algorithm) -> EncodingKey {
        let pem = self.text("private.pem");
        let der = STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>());
        let der = der.expect("base64");
        match algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_der(&der),
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_der(&der),
            _ => {
                let key = rsa::RsaPrivateKey::from_pkcs8_der(&der).expect("an RSA key");
                EncodingKey::from_rsa_der(key.to_pkcs1_der().expect("an RSA key").as_bytes())
            }
        }
    }

    fn sign(&self, algorithm: Algorithm, claims: &Value) -> String {
        let mut header = Header::new(algorithm);
        header.kid = Some(self.kid());
        encode(&header, claims, &self.signing(algorithm)).expect("a token")
    }
}

fn hmac(algorithm: Algorithm, claims: &Value) -> String {
    encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("a token")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Claims of an account that may enter the rooms `cams/…`.
fn claims() -> Value {
    json!({"sub": "shop", "exp": now() + 600, "siblings": {"rooms": ["cams/*"]}})
}

/// A node whose rooms are not public, with these settings.
async fn node(settings: Settings) -> Cluster {
    Cluster::memory(&settings.set("DEFAULT_PUBLIC", "off")).await
}

fn closed() -> Settings {
    Settings::new()
}

async fn make(node: &Gateway, token: &str, body: Value) -> Reply {
    node.ask("POST", "/v1/pairs", token, Some(&body)).await
}

/// Makes a pair in a room of the account; what is answered.
async fn enter(node: &Gateway, token: &str) -> Reply {
    make(node, token, json!({"room": "cams/1", "format": "text"})).await
}

/// The code that a page is closed with that opens this room with this token.
async fn page_code(node: &Gateway, room: &str, token: &str) -> Option<u16> {
    let path = format!("/v1/rooms/{}/client", room.replace('/', "%2F"));
    let offer = format!("siblings.text, bearer.{token}");
    let closed = Dial::to(node, path).offer(&offer).in_a_browser().closed().await;
    assert!(!closed.reason.is_empty() && closed.reason.len() <= 123, "{closed:?}");
    closed.code
}

/// A token with its header replaced, and whatever signature it had.
fn with_header(token: &str, header: &Value) -> String {
    let (_, rest) = token.split_once('.').expect("three parts");
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
}
