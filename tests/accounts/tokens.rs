//! Tokens: whose are taken, and why others are refused.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::{
    ALL_RSA, Keys, SECRET, claims, closed, enter, hmac, make, node, now, page_code,
    support::{ADMIN_KEY, ClientSocket, Cluster, Codec, Dial, Settings, Sibling},
    with_header,
};

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
