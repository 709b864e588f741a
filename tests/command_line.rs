//! The command `sibling`, as a shell uses it.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

use serde_json::json;
use support::{ClientSocket, Cluster, PATIENCE, Pair, Settings};

/// Runs `sibling` to its end.
fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sibling"));
    command.args(args).stdin(Stdio::null()).output().expect("the gateway's binary runs")
}

/// A running `sibling`, killed when dropped, with its lines of output.
struct Tool {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Tool {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sibling"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the gateway's binary runs");
        let (tell, lines) = mpsc::channel();
        let stdout = child.stdout.take().expect("a piped stdout");
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Self { child, lines }
    }

    fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("a piped stdin");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("a tool that listens");
    }

    /// Waits for a line that contains `word`.
    async fn line(&mut self, word: &str) -> String {
        let started = std::time::Instant::now();
        let mut seen = Vec::new();
        loop {
            match self.lines.try_recv() {
                Ok(line) if line.contains(word) => return line,
                Ok(line) => seen.push(line),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
            assert!(started.elapsed() < PATIENCE, "no line with {word:?} in {seen:#?}");
        }
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn bad_usage_is_64_and_a_missing_broker_69() {
    for args in [
        &["serve", "--no-such-flag"][..],
        &["serve", "--broker", "carrier-pigeon://loft"],
        &["serve", "--broker", "redis-pigeon://loft"],
        &["serve", "--broker", "redis-sentinel://loft:1"],
        &["serve", "--listen", "nowhere"],
        &["serve", "--requests-per-second", "0"],
        &["serve", "--trusted-proxies", "10.0.0.1,10.0.0.0/33"],
        &["no-such-command"],
    ] {
        let done = run(args);
        assert_eq!(done.status.code(), Some(64), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        assert!(!done.stderr.is_empty(), "{args:?} is explained");
    }
    // A port that nobody listens on: bound, and given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    for broker in [
        format!("redis://127.0.0.1:{port}/0"),
        format!("redis-sentinel://127.0.0.1:{port}/main"),
        format!("redis-cluster://127.0.0.1:{port}"),
    ] {
        let started = std::time::Instant::now();
        let done = run(&["serve", "--listen", "127.0.0.1:0", "--broker", &broker]);
        assert_eq!(done.status.code(), Some(69), "{broker}: {}", String::from_utf8_lossy(&done.stderr));
        assert!(started.elapsed().as_secs() < 10, "{broker}: took {:?}", started.elapsed());
    }
    let wrong = run(&["serve", "--broker", "carrier-pigeon://loft:secret@here"]);
    let said = String::from_utf8_lossy(&wrong.stderr);
    for form in ["memory", "redis://", "redis-sentinel://", "redis-cluster://"] {
        assert!(said.contains(form), "the right forms are named: {said}");
    }
    assert!(!said.contains("secret"), "{said}");
    for args in [&["--help"][..], &["--version"]] {
        assert!(run(args).status.success(), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipe_and_attach_do_the_main_job_in_a_terminal() {
    let cluster = Cluster::memory(&Settings::bare()).await;
    let node = cluster.node(0);
    let url = format!("http://{}", node.addr);
    let pair = Pair::make(node, "hall", "text").await;
    let mut member = ClientSocket::open(node, &pair).await;
    let mut pipe = Tool::start(&["pipe", "hall", "--url", &url]);
    pipe.say("hello from a shell");
    assert_eq!(member.next_text().await, "hello from a shell");
    member.text("hello, shell").await;
    assert_eq!(pipe.line("hello").await, "hello, shell", "the frame and nothing else");

    let mut attach = Tool::start(&["attach", &pair.id, "--url", &url, "--ticket", &pair.sibling_ticket]);
    attach.line("ready").await;
    attach.say(r#"client.push {"text":"from the sibling"}"#);
    assert_eq!(member.next_text().await, "from the sibling");
    attach.say(&json!({"jsonrpc": "2.0", "id": 9, "method": "client.close"}).to_string());
    attach.line("client.closed").await;
    assert_eq!(member.closed().await.code, Some(1000));
}
