//! Accounts: whose token is taken, which are refused and why, and what happens while those who know are away.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::pkcs8::DecodePrivateKey;
use serde_json::{Value, json};
use support::{
    ADMIN_KEY, ClientSocket, Cluster, Codec, Dial, Gateway, PATIENCE, Reply, Says, Settings, Sibling, Stub,
    eventually,
};

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

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_every_family_are_taken() {
    let table = [
        ("ed25519", &[Algorithm::EdDSA][..]),
        ("p256", &[Algorithm::ES256]),
        ("p384", &[Algorithm::ES384]),
        ("rsa", &ALL_RSA),
    ];
    for (kind, algorithms) in table {
        let keys = Keys::new(kind);
        let by_file = node(closed().set("JWT_KEY_FILE", keys.file("public.pem").display())).await;
        // Others than the ones above are for other keys: the key says what it is for.
        let foreign = hmac(Algorithm::HS256, &claims());
        assert!(enter(by_file.node(0), &foreign).await.text().contains("(alg)"), "{kind}");
        for algorithm in algorithms {
            let made = enter(by_file.node(0), &keys.sign(*algorithm, &claims())).await;
            assert_eq!(made.status, 201, "{algorithm:?}: {}", made.text());
        }
    }
    let by_secret = node(closed().set("JWT_KEY", SECRET)).await;
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let made = enter(by_secret.node(0), &hmac(algorithm, &claims())).await;
        assert_eq!(made.status, 201, "{algorithm:?}: {}", made.text());
    }
    // In a room's path and in a subprotocol, as pages do it, too.
    let offer = format!("siblings.text, bearer.{}", hmac(Algorithm::HS256, &claims()));
    let dial = Dial::to(by_secret.node(0), "/v1/rooms/cams%2F1/client").offer(&offer).in_a_browser();
    let (_ws, response) = dial.connect().await.expect("an open room");
    assert!(response.headers().contains_key("sibling-ticket"));
}

/// A token with its header replaced, and whatever signature it had.
fn with_header(token: &str, header: &Value) -> String {
    let (_, rest) = token.split_once('.').expect("three parts");
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens_are_refused_by_what_is_wrong_with_them() {
    let keys = Keys::new("rsa");
    let settings = closed().set("JWT_KEY_FILE", keys.file("public.pem").display());
    let cluster = node(settings.set("JWT_ISSUER", "the shop").set("JWT_AUDIENCE", "the gateway")).await;
    let node = cluster.node(0);
    let good = || {
        let mut claims = claims();
        claims["iss"] = json!("the shop");
        claims["aud"] = json!(["the till", "the gateway"]);
        claims
    };
    let sign = |claims: Value| keys.sign(Algorithm::RS256, &claims);
    let with = |path: &str, value: Value| {
        let mut claims = good();
        *claims.pointer_mut(path).expect("a claim") = value;
        sign(claims)
    };
    let without = |claim: &str| {
        let mut claims = good();
        claims.as_object_mut().expect("an object").remove(claim);
        sign(claims)
    };
    let plus = |claim: &str, value: Value| {
        let mut claims = good();
        claims[claim] = value;
        sign(claims)
    };
    let said = |field: &str, value: Value| {
        let mut claims = good();
        claims["siblings"][field] = value;
        sign(claims)
    };
    let token = sign(good());
    assert_eq!(enter(node, &token).await.status, 201);
    let as_secret = |pem: &str| {
        encode(&Header::new(Algorithm::HS256), &good(), &EncodingKey::from_secret(pem.as_bytes())).expect("a token")
    };
    let public = keys.text("public.pem");
    let unsigned = with_header(&token, &json!({"alg": "none"}));
    let unsigned = format!("{}.", unsigned.rsplit_once('.').expect("three parts").0);
    let table = [
        ("nothing of a token", "x".to_owned(), "no JWT"),
        ("a fourth part", format!("{token}.x"), "no JWT"),
        ("alg none", unsigned.clone(), "(alg)"),
        (
            "alg None",
            unsigned.replacen(
                &URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
                &URL_SAFE_NO_PAD.encode(r#"{"alg":"None"}"#),
                1,
            ),
            "(alg)",
        ),
        ("the public key as a secret", as_secret(&public), "(alg)"),
        ("the same, trimmed", as_secret(public.trim()), "(alg)"),
        ("another alg", with_header(&token, &json!({"alg": "RS512"})), "signature"),
        (
            "something critical",
            with_header(&token, &json!({"alg": "RS256", "crit": ["b64"], "b64": false})),
            "(crit)",
        ),
        (
            "a kid that is a path",
            with_header(&token, &json!({"alg": "RS256", "kid": "../../etc/passwd"})),
            "signature",
        ),
        ("a key of its own", with_header(&token, &json!({"alg": "RS256", "jku": "http://localhost/"})), "signature"),
        ("cut off", token[..token.len() - 2].to_owned(), "signature"),
        ("another signer", Keys::new("rsa").sign(Algorithm::RS256, &good()), "signature"),
        ("another's aud", with("/aud", json!("the till")), "(aud)"),
        ("no aud", without("aud"), "(aud)"),
        ("another's iss", with("/iss", json!("the shopkeeper")), "(iss)"),
        ("no iss", without("iss"), "(iss)"),
        ("expired", with("/exp", json!(now() - 6)), "expired"),
        ("no exp", without("exp"), "(exp"),
        ("an exp in words", with("/exp", json!("tomorrow")), "(exp"),
        ("an exp below 1970", with("/exp", json!(-1)), "(exp"),
        ("not yet", plus("nbf", json!(now() + 60)), "(nbf)"),
        ("an nbf in words", plus("nbf", json!("today")), "(nbf"),
        ("no sub", without("sub"), "(sub)"),
        ("a sub that is a number", with("/sub", json!(7)), "(sub)"),
        ("an empty sub", with("/sub", json!("")), "sub"),
        ("no siblings", without("siblings"), "siblings"),
        ("siblings in words", with("/siblings", json!("all")), "siblings"),
        ("no rooms", with("/siblings", json!({})), "rooms"),
        ("a bad pattern", with("/siblings/rooms", json!(["a b"])), "siblings.rooms"),
        ("too many patterns", with("/siblings/rooms", json!(vec!["a"; 65])), "siblings.rooms"),
        ("a bad grant", said("grants", json!(["everything"])), "everything"),
        ("a bad format", said("formats", json!(["smoke"])), "siblings.formats"),
        ("a field that is none", said("grant", json!(["*"])), "grant"),
        ("too long", "x".repeat(8_193), "8192"),
    ];
    let mut unnamed = Vec::new();
    for (case, token, word) in &table {
        let refused = enter(node, token).await;
        assert_eq!(refused.problem(401), "unauthorized", "{case}");
        let text = refused.text();
        if !text.contains(word) {
            unnamed.push(format!("{case}: {word} is not named: {text}"));
        }
        let signature = token.rsplit('.').next().unwrap_or_default();
        assert!(signature.len() < 8 || !text.contains(signature), "{case}: the token is told: {text}");
        if token.len() < 6_000 {
            assert_eq!(page_code(node, "cams/1", token).await, Some(3501), "{case}");
        }
    }
    assert!(unnamed.is_empty(), "{unnamed:#?}");
    let huge = enter(node, &"x".repeat(1 << 20)).await;
    assert!(matches!(huge.status, 0 | 400 | 401 | 413 | 431), "{}", huge.status);
    // The clocks of others may be a little off, and a token may live long.
    for claims in [with("/exp", json!(now() - 1)), plus("nbf", json!(now() + 3)), with("/exp", json!(u64::MAX))] {
        assert_eq!(enter(node, &claims).await.status, 201);
    }
    for word in ["eyJ", &public.lines().nth(1).expect("base64")[..20]] {
        assert!(!node.printed().contains(word), "nothing of it is in the log: {word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_token_is_good_for_what_it_says() {
    let cluster = node(closed().set("JWT_KEY", SECRET)).await;
    let node = cluster.node(0);
    let mut claims = claims();
    claims["siblings"] =
        json!({"rooms": ["cams/*"], "formats": ["binary"], "grants": ["pair.*", "client.send", "room.set"]});
    let token = hmac(Algorithm::HS256, &claims);
    let table = [
        (json!({"room": "hall"}), "room"),
        (json!({"room": "cams"}), "room"),
        (json!({"room": "cams/1", "format": "text"}), "binary"),
        (json!({"room": "cams/1", "grants": ["client.*"]}), "client.*"),
        (json!({"room": "cams/1", "grants": ["room.kick"]}), "room.kick"),
        (json!({"room": "cams/1", "grants": ["*"]}), "*"),
    ];
    for (body, word) in table {
        let refused = make(node, &token, body.clone()).await;
        assert_eq!(refused.problem(403), "forbidden", "{body}");
        assert!(refused.text().contains(word), "{body}: {}", refused.text());
    }
    assert_eq!(page_code(node, "hall", &token).await, Some(3503));
    let made = make(node, &token, json!({"room": "cams/1", "grants": ["room.set", "client.send"]})).await;
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(made.json()["format"], "binary");
    assert_eq!(made.json()["sibling"]["grants"], json!(["room.set", "client.send"]));
    // Nothing asked for is what a sibling has by default, and the account, too.
    let made = make(node, &token, json!({"room": "cams/1"})).await;
    assert_eq!(made.json()["sibling"]["grants"], json!(["pair.*", "client.send"]), "{}", made.text());
    // A ticket is no token, and a token is no ticket.
    let ticket = made.json()["sibling"]["ticket"].as_str().expect("a ticket").to_owned();
    let refused = enter(node, &ticket).await;
    assert!(refused.problem(401) == "unauthorized" && refused.text().contains("ticket"), "{}", refused.text());
    let pair = made.json()["pair"].as_str().expect("a pair").to_owned();
    node.ask("GET", &format!("/v1/pairs/{pair}"), &token, None).await.problem(401);
    // Without a token only public rooms are open, and there are none.
    node.send("POST", "/v1/pairs", &[], Some(&json!({"room": "cams/1"}))).await.problem(401);
    assert_eq!(enter(node, ADMIN_KEY).await.status, 201);

    let strict = Cluster::memory(&Settings::new().set("ANONYMOUS", "off")).await;
    let refused = strict.node(0).send("POST", "/v1/pairs", &[], Some(&json!({"room": "hall"}))).await;
    assert!(refused.problem(401) == "unauthorized" && refused.text().contains("SIBLING_ANONYMOUS"));
    let refused = enter(strict.node(0), &token).await;
    assert!(refused.problem(401) == "unauthorized" && refused.text().contains("SIBLING_JWT_KEY"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_token_opened_ends_with_it() {
    let cluster = node(closed().set("JWT_KEY", SECRET)).await;
    let mut claims = claims();
    claims["exp"] = json!(now() + 4);
    let token = hmac(Algorithm::HS256, &claims);
    let dial = Dial::to(cluster.node(0), "/v1/rooms/cams%2F1/client").bearer(&token);
    let (ws, response) = dial.connect().await.expect("a good token");
    let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
    let path = format!("/v1/pairs/{}/sibling", header("sibling-pair"));
    let dial = Dial::to(cluster.node(0), path).bearer(&header("sibling-ticket"));
    let mut sibling = Sibling::over(Codec::Json, dial).await;
    assert_eq!(sibling.event("ticket.expiring").await["data"]["side"], "client");
    let closed = ClientSocket::over(ws).closed().await;
    assert_eq!((closed.code, closed.reason.as_str()), (Some(3501), "ticket expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_changed_without_a_break_and_their_server_may_be_away() {
    let (old, new) = (Keys::new("ed25519"), Keys::new("p256"));
    let odd = [json!({"kty": "oct", "kid": "secret", "k": URL_SAFE_NO_PAD.encode(SECRET)}), json!({"kty": "DSA"})];
    let set = |keys: &[&Keys]| {
        let keys: Vec<_> = odd.iter().cloned().chain(keys.iter().map(|keys| keys.jwk())).collect();
        json!({"keys": keys})
    };
    let first = set(&[&old]);
    let server = Stub::start(move |_| Says::json(&first)).await;
    let cluster = node(closed().set("JWKS_URL", server.url())).await;
    let node = cluster.node(0);
    let of_old = old.sign(Algorithm::EdDSA, &claims());
    let of_new = new.sign(Algorithm::ES256, &claims());
    assert_eq!(server.asked(), 0, "the keys are fetched when they are needed");
    let entering = (0..20).map(|_| enter(node, &of_old));
    for made in futures_util::future::join_all(entering).await {
        assert_eq!(made.status, 201, "{}", made.text());
    }
    assert_eq!(server.asked(), 1, "and then kept");

    // A key that nobody has heard of: the server is asked, at once, and then not for every name that comes.
    let second = set(&[&new]);
    server.change(move |_| Says::json(&second));
    assert_eq!(enter(node, &of_new).await.status, 201);
    let refused = enter(node, &of_old).await;
    assert!(refused.problem(401) == "unauthorized" && refused.text().contains("(kid)"), "{}", refused.text());
    for kid in 0..30 {
        let stranger = with_header(&of_new, &json!({"alg": "ES256", "kid": format!("../{kid}")}));
        enter(node, &stranger).await.problem(401);
    }
    assert!(server.asked() <= 4, "{} times", server.asked());
    // A secret that stands in a public place is no key.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("secret".into());
    let open = encode(&header, &claims(), &EncodingKey::from_secret(SECRET.as_bytes())).expect("a token");
    enter(node, &open).await.problem(401);

    // Its server goes away: what was fetched stays in use, and nobody waits long.
    let third = set(&[&new]);
    server.change(move |_| Says::json(&third));
    let cluster = self::node(closed().set("JWKS_URL", server.url()).set("JWKS_SECONDS", 1)).await;
    let node = cluster.node(0);
    assert_eq!(enter(node, &of_new).await.status, 201);
    server.change(|_| Says::HangsUp);
    let before = server.asked();
    eventually("the keys are asked for in vain", async || {
        assert_eq!(enter(node, &of_new).await.status, 201);
        (server.asked() > before).then_some(())
    })
    .await;
    assert_eq!(enter(node, &of_new).await.status, 201, "with the keys that are there");
    let unknown = enter(node, &of_old).await;
    assert_eq!(unknown.problem(503), "authorizer_unavailable", "nobody can say whether it is good");
    assert!(unknown.header("retry-after").is_some());
    let asked = server.asked();
    for _ in 0..30 {
        assert_eq!(enter(node, &of_new).await.status, 201);
    }
    assert!(server.asked() <= asked + 1, "a server that fails is left alone for a while");

    // Keys that could never be had: neither yes nor no.
    let cluster = self::node(closed().set("JWKS_URL", server.url())).await;
    assert_eq!(enter(cluster.node(0), &of_new).await.problem(503), "authorizer_unavailable");
    assert_eq!(page_code(cluster.node(0), "cams/1", &of_new).await, Some(1013));
    // And had as soon as they are there again.
    let fourth = set(&[&new]);
    server.change(move |_| Says::json(&fourth));
    eventually("the keys are there", async || (enter(cluster.node(0), &of_new).await.status == 201).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_decides_and_its_silence_is_no_permission() {
    let allow = json!({"allow": true, "sub": "shop", "rooms": ["cams/*"], "grants": ["pair.*"]});
    let server = Stub::start(move |body| {
        let asked: Value = serde_json::from_str(body).expect("JSON");
        match asked["token"].as_str().expect("a token") {
            "good" => Says::json(&allow),
            "bad" => Says::json(&json!({"allow": false, "reason": "closed on\nSundays"})),
            "slow" => Says::Nothing,
            "broken" => Says::HangsUp,
            "rubbish" => Says::Body(200, "<html>yes</html>".into()),
            "half" => Says::json(&json!({"allow": true})),
            "wide" => Says::json(&json!({"allow": true, "sub": "shop", "rooms": ["*"], "grant": ["*"]})),
            "huge" => {
                Says::Body(200, format!("{}{}", " ".repeat(100_000), r#"{"allow":true,"sub":"a","rooms":["*"]}"#))
            }
            status => Says::Body(status.parse().expect("a status"), allow.to_string()),
        }
    })
    .await;
    let cluster = node(closed().set("AUTHORIZE_URL", server.url()).set("AUTHORIZE_SECONDS", 1)).await;
    let node = cluster.node(0);
    let made = enter(node, "good").await;
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(made.json()["sibling"]["grants"], json!(["pair.*"]));
    let asked: Value = serde_json::from_str(&server.heard()[0]).expect("JSON");
    assert_eq!(asked, json!({"token": "good", "action": "pair.create", "room": "cams/1"}));
    make(node, "good", json!({"room": "hall"})).await.problem(403);
    let refused = enter(node, "bad").await;
    assert_eq!(refused.problem(403), "forbidden");
    assert_eq!(refused.json()["detail"], "refused: closed onSundays");
    assert_eq!(page_code(node, "cams/1", "bad").await, Some(3503));
    for token in ["slow", "broken", "rubbish", "half", "wide", "huge", "302", "401", "404", "500"] {
        let started = Instant::now();
        let unclear = enter(node, token).await;
        assert_eq!(unclear.problem(503), "authorizer_unavailable", "{token}");
        assert!(unclear.header("retry-after").is_some(), "{token}");
        assert!(started.elapsed().as_secs() < 5, "{token} took {:?}", started.elapsed());
    }
    assert_eq!(page_code(node, "cams/1", "slow").await, Some(1013));
    // Many at a time, with a server that does not answer: all are told so in time.
    let asking = (0..200).map(|_| enter(node, "slow"));
    for unclear in futures_util::future::join_all(asking).await {
        assert_eq!(unclear.problem(503), "authorizer_unavailable");
    }
    assert_eq!(enter(node, "good").await.status, 201, "and then it works again");

    // What is none of its business does not reach it.
    let before = server.asked();
    let made = enter(node, ADMIN_KEY).await;
    let ticket = made.json()["sibling"]["ticket"].as_str().expect("a ticket").to_owned();
    enter(node, &ticket).await.problem(401);
    enter(node, &"x".repeat(8_193)).await.problem(401);
    node.send("POST", "/v1/pairs", &[], Some(&json!({"room": "cams/1"}))).await.problem(401);
    assert_eq!(server.asked(), before);
    assert!(!node.printed().contains(&server.url()), "its address may be a secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tools_make_what_the_gateway_takes() {
    let secret = printed(&["keys", "generate"], &[]);
    assert!(secret.len() == 64 && secret.bytes().all(|c| c.is_ascii_hexdigit()), "{secret}");
    let keys = Keys::new("ed25519");
    let (private, public) = (keys.file("private.pem"), keys.file("public.pem"));
    assert_eq!(mode(&private), 0o600);
    let folder = keys.folder.path().to_str().expect("a plain path");
    let again = sibling(&["keys", "generate", "--kind", "p256", "--out", folder], &[]);
    assert_eq!(again.status.code(), Some(1), "nothing is overwritten");

    let (private, public) = (private.to_str().expect("a plain path"), public.to_str().expect("a plain path"));
    let issue = ["token", "issue", "--sub", "shop", "--rooms", "cams/*,hall", "--key-file", private];
    let settings = [("SIBLING_JWT_ISSUER", "me"), ("SIBLING_JWT_AUDIENCE", "you"), ("SIBLING_JWT_KEY_FILE", public)];
    let token = printed(&issue, &settings);
    assert!(!token.contains('\n') && token.split('.').count() == 3, "{token}");
    let told = printed(&["token", "verify", &token], &settings);
    for line in ["alg: EdDSA", "sub: shop", "iss: me", "aud: you", "rooms: [\"cams/*\",\"hall\"]", "accepted"] {
        assert!(told.lines().any(|said| said == line), "{line}: {told}");
    }
    let elsewhere = sibling(&["token", "verify", &token], &[("SIBLING_JWT_KEY", SECRET)]);
    assert_eq!(elsewhere.status.code(), Some(1));
    let said = String::from_utf8_lossy(&elsewhere.stdout).into_owned();
    assert!(said.contains("sub: shop") && said.contains("refused: ") && said.contains("(alg)"), "{said}");

    // The gateway with the same settings takes it, and a ticket that is signed beside it.
    let shared = "a ticket secret of the gateway and of whoever signs beside it";
    let mut gateway = closed().set("SECRET", shared);
    for (name, value) in settings {
        gateway = gateway.set(name.strip_prefix("SIBLING_").expect("a setting"), value);
    }
    let cluster = node(gateway).await;
    let node = cluster.node(0);
    let made = enter(node, &token).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let pair = made.json()["pair"].as_str().expect("a pair").to_owned();
    let sign = |side: &str, more: &[&str]| {
        let args = [&["ticket", "--pair", &pair, "--side", side][..], more].concat();
        printed(&args, &[("SIBLING_SECRET", shared)])
    };
    let observer = sign("sibling", &["--grants", "pair.get"]);
    let path = format!("/v1/pairs/{pair}");
    assert_eq!(node.ask("GET", &path, &observer, None).await.status, 200);
    node.ask("DELETE", &path, &observer, None).await.problem(403);
    let _pipe = Dial::to(node, format!("{path}/client")).bearer(&sign("client", &[])).open().await;
    let told = sibling(&["token", "verify", &observer], &settings);
    assert!(String::from_utf8_lossy(&told.stdout).contains("ticket"), "a ticket is told from a token");

    // A key of the other kinds, and from openssl's older forms, by the environment.
    let by_secret = [("SIBLING_JWT_KEY", secret.as_str())];
    let token = printed(&["token", "issue", "--sub", "a", "--rooms", "*", "--alg", "HS512"], &by_secret);
    assert!(printed(&["token", "verify", &token], &by_secret).contains("alg: HS512"));
    for (args, word) in [
        (&["token", "issue", "--sub", "a", "--rooms", "*"][..], "SIBLING_JWT_KEY"),
        (&["token", "issue", "--sub", "a", "--rooms", "a b", "--key-file", private], "pattern"),
        (&["token", "issue", "--sub", "a", "--rooms", "a", "--key-file", public], "can't sign"),
        (&["token", "issue", "--sub", "a", "--rooms", "a", "--key-file", private, "--alg", "none"], "EdDSA"),
        (&["token", "issue", "--sub", "a", "--rooms", "a", "--key-file", private, "--grants", "all"], "all"),
        (&["token", "issue", "--sub", "a", "--rooms", "a", "--key-file", private, "--formats", "smoke"], "binary"),
        (&["token", "verify", "x"], "SIBLING_JWKS_URL"),
        (&["ticket", "--pair", &pair, "--side", "client"], "SIBLING_SECRET"),
        (&["ticket", "--pair", "nobody", "--side", "client"], "pair"),
        (&["ticket", "--pair", &pair, "--side", "client", "--grants", "*", "--secret", "x"], "--grants"),
        (&["keys", "generate", "--kind", "carrier-pigeon"], "ed25519"),
    ] {
        let done = sibling(args, &[]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(64), "{args:?}: {said}");
        assert!(said.contains(word) && done.stdout.is_empty(), "{args:?}: {word} is not named: {said}");
    }
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).expect("a file").permissions().mode() & 0o777
}

#[test]
fn settings_that_mean_nothing_are_refused_by_name() {
    let keys = Keys::new("p256");
    let (private, public) = (keys.text("private.pem"), keys.text("public.pem"));
    let table = [
        (&[("SIBLING_JWT_KEY", "x"), ("SIBLING_JWKS_URL", "http://localhost/")][..], "SIBLING_JWKS_URL"),
        (&[("SIBLING_JWT_KEY", &public), ("SIBLING_AUTHORIZE_URL", "http://localhost/")], "SIBLING_AUTHORIZE_URL"),
        (&[("SIBLING_JWT_ISSUER", "x")], "SIBLING_JWT_ISSUER"),
        (&[("SIBLING_JWT_KEY", &private)], "private key"),
        (&[("SIBLING_JWT_KEY_FILE", "/no/such/file")], "/no/such/file"),
        (&[("SIBLING_JWT_KEY", SECRET), ("SIBLING_SECRET", SECRET)], "SIBLING_SECRET"),
        (&[("SIBLING_JWKS_URL", "somewhere")], "SIBLING_JWKS_URL"),
        (&[("SIBLING_AUTHORIZE_SECONDS", "0"), ("SIBLING_AUTHORIZE_URL", "http://localhost/")], "authorize-seconds"),
    ];
    for (settings, word) in table {
        let done = sibling(&["serve", "--listen", "127.0.0.1:0"], settings);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(64), "{settings:?}: {said}");
        assert!(said.contains(word), "{word} is not named: {said}");
    }
    let secret = private.lines().nth(1).expect("base64");
    let done = sibling(&["serve", "--listen", "127.0.0.1:0"], &[("SIBLING_JWT_KEY", &private)]);
    assert!(!String::from_utf8_lossy(&done.stderr).contains(secret), "a key is not repeated");
}
