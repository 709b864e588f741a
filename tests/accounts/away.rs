//! Those who know the keys, or decide: they change their minds, and are away.

use std::time::Instant;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::{
    Keys, SECRET, claims, closed, enter, make, node, page_code,
    support::{ADMIN_KEY, Says, Stub, eventually},
    with_header,
};

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
