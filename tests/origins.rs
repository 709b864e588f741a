//! Which pages may open sockets: those of the gateway itself and those on the list, exactly.

mod support;

use support::{Cluster, Dial, Settings};

#[tokio::test(flavor = "multi_thread")]
async fn only_the_listed_origins_may_open_sockets() {
    let listed = Settings::new().set("ALLOWED_ORIGINS", "https://app.example,http://other.example:8443");
    let cluster = Cluster::memory(&listed).await;
    let node = cluster.node(0);
    let dial = |origin: &str| {
        Dial::to(node, "/v1/rooms/hall/client?format=text").offer("siblings.text").header("Origin", origin)
    };
    let own = format!("http://{}", node.addr);
    for origin in ["https://app.example", "http://other.example:8443", own.as_str()] {
        let (_ws, response) = dial(origin).connect().await.expect(origin);
        // A refusal is let in too, but makes no pair.
        assert!(response.headers().contains_key("sibling-pair"), "{origin}");
    }
    for origin in [
        "null",
        "https://evil.example",
        "http://app.example",
        "https://app.example:444",
        "https://app.example.evil.example",
        "https://evilapp.example",
        "https://sub.app.example",
        "https://app.example/",
        "app.example",
        "*",
        "",
    ] {
        let closed = dial(origin).closed().await;
        assert_eq!(closed.code, Some(3503), "{origin}: {closed:?}");
    }
}
