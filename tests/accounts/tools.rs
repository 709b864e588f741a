//! The command line's tools for tokens and keys, and settings that mean nothing.

use std::path::Path;

use crate::{Keys, SECRET, closed, enter, node, printed, sibling, support::Dial};

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
