//! The page at `/`, in a real browser.

mod support;

use std::process::{Child, Command, Stdio};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use support::{Cluster, Settings, eventually, within};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

/// A headless Chromium that ends with this value.
struct Browser {
    child: Child,
    profile: TempDir,
}

impl Browser {
    fn start() -> Self {
        let profile = TempDir::new().expect("a temporary directory");
        let child = Command::new("/usr/bin/chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"])
            .args(["--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            // Port 0: the browser picks one, and writes it into its profile.
            .args(["--remote-debugging-port=0", "about:blank"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium runs; it is the package `chromium`");
        Self { child, profile }
    }

    /// The debugging address of the page that is open.
    async fn page(&self) -> String {
        let port = eventually("chromium tells its port", async || {
            let told = std::fs::read_to_string(self.profile.path().join("DevToolsActivePort")).ok()?;
            told.lines().next()?.parse::<u16>().ok()
        })
        .await;
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        eventually("chromium has a page", async || {
            let head = format!("GET /json/list HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
            let reply = support::exchange(addr, head.as_bytes()).await;
            let targets: Value = serde_json::from_slice(&reply.body).ok()?;
            let page = targets.as_array()?.iter().find(|target| target["type"] == "page")?;
            page["webSocketDebuggerUrl"].as_str().map(str::to_owned)
        })
        .await
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_moves_in_a_real_browser() {
    let cluster = Cluster::memory(&Settings::bare()).await;
    let node = cluster.node(0);
    let page = node.get("/").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));

    let browser = Browser::start();
    let url = browser.page().await;
    let (mut ws, _) = {
        let host = url.strip_prefix("ws://").and_then(|rest| rest.split('/').next());
        let stream = tokio::net::TcpStream::connect(host.expect("a ws URL")).await;
        let stream = stream.expect("chromium's debugging port");
        within("chromium's debugger", tokio_tungstenite::client_async(&url, stream))
            .await
            .expect("a debugging socket")
    };
    let mut next_id = 0;
    let mut complaints: Vec<Value> = Vec::new();
    let mut ask = async |method: &str, params: Value| {
        next_id += 1;
        let call = json!({"id": next_id, "method": method, "params": params});
        ws.send(Message::text(call.to_string())).await.expect("an open debugging socket");
        loop {
            let message = within("chromium's answer", ws.next()).await;
            let Some(Ok(Message::Text(text))) = message else {
                panic!("chromium went away: {message:?}");
            };
            let told: Value = serde_json::from_str(&text).expect("JSON");
            let kind = told["method"].as_str();
            if matches!(kind, Some("Runtime.exceptionThrown" | "Log.entryAdded")) {
                complaints.push(told.clone());
            }
            if told["id"] == next_id {
                return (told["result"].clone(), complaints.clone());
            }
        }
    };
    ask("Runtime.enable", json!({})).await;
    ask("Log.enable", json!({})).await;
    ask("Page.navigate", json!({"url": format!("http://{}/", node.addr)})).await;
    let look = json!({
        "returnByValue": true,
        "expression": "JSON.stringify([document.documentElement.dataset.state, \
                       Number(document.documentElement.dataset.frames)])",
    });
    let mut seen = Value::Null;
    let started = std::time::Instant::now();
    loop {
        let (result, complaints) = ask("Runtime.evaluate", look.clone()).await;
        let told = result["result"]["value"].as_str().unwrap_or("null").to_owned();
        seen = serde_json::from_str(&told).unwrap_or(seen);
        if seen[0] == "moving" && seen[1].as_f64().is_some_and(|frames| frames > 30.0) {
            let errors: Vec<_> =
                complaints.iter().filter(|told| told["params"]["entry"]["level"] != "info").collect();
            assert!(errors.is_empty(), "the page complains: {errors:#?}");
            return;
        }
        assert!(started.elapsed() < 2 * support::PATIENCE, "the page does not move: {seen}, {complaints:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
