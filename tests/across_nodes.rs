//! The main job on real input: three nodes, a media stream, a chat beside it, and siblings at work.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{ClientSocket, Cluster, Pair, Settings, Sibling, counter, eventually};
use tokio_tungstenite::tungstenite::Message;

/// Frames may be this far ahead of the receiver: half of what a queue calls high water.
const WINDOW: usize = 256 * 1024;

/// Makes a real film with moving pictures and sound, of 10 MB or more.
fn film(dir: &Path) -> PathBuf {
    let path = dir.join("film.ts");
    let made = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin"])
        .args(["-f", "lavfi", "-i", "testsrc2=s=1280x720:r=30:d=8"])
        .args(["-f", "lavfi", "-i", "sine=frequency=440:duration=8"])
        .args(["-c:v", "mpeg2video", "-q:v", "2", "-c:a", "mp2", "-f", "mpegts"])
        .arg(&path)
        .status()
        .expect("ffmpeg runs; it is the package `ffmpeg`");
    assert!(made.success(), "ffmpeg made no film");
    path
}

/// Cuts the film into frames: mostly 16 KiB, and uneven ones between, down to a single byte.
fn frames_of(film: &[u8]) -> Vec<&[u8]> {
    let sizes = [16_384, 16_384, 1, 16_384, 1_316, 65_535, 125, 126, 16_384, 65_536, 188];
    let mut sizes = sizes.iter().cycle();
    let mut rest = film;
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let size = rest.len().min(*sizes.next().expect("an endless cycle"));
        let (frame, behind) = rest.split_at(size);
        frames.push(frame);
        rest = behind;
    }
    frames
}

/// Streams frames `from..to` and keeps at most a window in flight to `watcher`.
async fn stream(sender: &mut ClientSocket, watcher: &mut ClientSocket, frames: &[&[u8]], from: usize, to: usize) {
    let mut in_flight = std::collections::VecDeque::new();
    let mut bytes = 0;
    for (at, frame) in frames.iter().enumerate().take(to).skip(from) {
        sender.binary(*frame).await;
        in_flight.push_back((at, frame.len()));
        bytes += frame.len();
        while bytes > WINDOW {
            let (oldest, size) = in_flight.pop_front().expect("bytes in flight");
            watcher.until_received(oldest + 1).await;
            bytes -= size;
        }
    }
}

fn position(reply: &Value) -> usize {
    let position = reply["position"].as_u64();
    usize::try_from(position.unwrap_or_else(|| panic!("no position: {reply}"))).expect("a count")
}

/// Checks that an event is there as the effect of a command with this key.
async fn effect(sibling: &mut Sibling, kind: &str, key: &str) -> Value {
    sibling.event_where(kind, |params| params["cause"]["key"] == key).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_film_crosses_nodes_while_siblings_work_on_its_pipe() {
    let cluster = Cluster::redis(3, &Settings::new()).await;
    let (a, b, c) = (cluster.node(0), cluster.node(1), cluster.node(2));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let film = std::fs::read(film(dir.path())).expect("the film");
    assert!(film.len() >= 10_000_000, "the film has only {} bytes", film.len());
    let frames = frames_of(&film);

    // The pairs are made on one node, opened on another, and commanded from a third.
    let (from, to) = (Pair::make(c, "cam", "binary").await, Pair::make(b, "cam", "binary").await);
    let mut watcher = ClientSocket::open(a, &to).await;
    let mut sender = ClientSocket::open(b, &from).await;
    let mut over_sender = Sibling::open(c, &from).await;
    let mut over_watcher = Sibling::open(a, &to).await;

    let quarter = frames.len() / 4;
    stream(&mut sender, &mut watcher, &frames, 0, quarter).await;

    // Back-pressure on the sender: nothing is lost, however long it lasts.
    let held = over_sender.must("client.pause", json!({"direction": "in", "policy": "hold", "key": "hold"})).await;
    effect(&mut over_sender, "client.paused", "hold").await;
    let resume = async {
        // A position on the way in counts what the node has taken from the client, and the pipe
        // still holds it: nothing passes between pause and resume.
        let resumed = over_sender.must("client.resume", json!({"direction": "in", "key": "on"})).await;
        assert!(position(&resumed) >= position(&held), "{held} {resumed}");
        effect(&mut over_sender, "client.unpaused", "on").await;
    };
    tokio::join!(resume, stream(&mut sender, &mut watcher, &frames, quarter, 2 * quarter));
    watcher.until_received(2 * quarter).await;

    // The receiver's side: what comes in the meantime waits in the gateway, and then follows.
    let paused =
        over_watcher.must("client.pause", json!({"direction": "out", "policy": "buffer", "key": "wait"})).await;
    assert_eq!(position(&paused), 2 * quarter, "all that was sent had been delivered");
    for frame in &frames[2 * quarter..2 * quarter + 10] {
        sender.binary(*frame).await;
    }
    let mut clip = 2 * quarter + 10;
    eventually("the pause holds ten frames back", async || {
        let state = over_watcher.must("pair.get", json!({})).await;
        (counter(&state, "queued_frames") == 10).then_some(())
    })
    .await;
    assert_eq!(watcher.received(), 2 * quarter, "a paused pipe is silent");
    let resumed = over_watcher.must("client.resume", json!({"direction": "out", "key": "go"})).await;
    assert_eq!((&resumed["buffered"], &resumed["dropped"]), (&json!(10), &json!(0)), "{resumed}");
    effect(&mut over_watcher, "client.unpaused", "go").await;

    stream(&mut sender, &mut watcher, &frames, clip, frames.len()).await;
    clip = frames.len();
    watcher.until_received(clip).await;

    // Equal bytes, equal frames, equal kinds; and not one frame that no agent sent.
    let mut hash = Sha256::new();
    let received = watcher.frames();
    for (at, frame) in received.iter().enumerate() {
        let Message::Binary(bytes) = frame else {
            panic!("frame {at} came as {frame:?}");
        };
        assert_eq!(bytes.len(), frames[at].len(), "frame {at} has kept its size");
        hash.update(bytes);
    }
    assert_eq!(hash.finalize(), Sha256::digest(&film), "the film is the same on both ends");

    over_watcher.must("client.close", json!({"code": 4000, "reason": "the end"})).await;
    let closed = over_watcher.event("client.closed").await;
    assert_eq!(closed["data"]["frames_out"], json!(frames.len()), "{closed}");
    assert_eq!(closed["data"]["bytes_out"], json!(film.len()), "{closed}");
    assert_eq!(watcher.closed().await.code, Some(4000));
    assert_eq!(watcher.received(), frames.len(), "nothing came after the film");
    let state = from.state(c).await;
    assert_eq!(counter(&state, "frames_in"), frames.len() as u64, "{state}");
    assert_eq!(counter(&state, "bytes_in"), film.len() as u64, "{state}");
    assert_eq!(sender.received(), 0, "the sender heard nothing of its own");
    assert!(sender.is_open(), "and is still open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_keeps_its_count_while_siblings_pause_move_push_and_close() {
    let cluster = Cluster::redis(3, &Settings::new()).await;
    let (a, b, c) = (cluster.node(0), cluster.node(1), cluster.node(2));
    let mut made = Vec::new();
    for room in ["chat", "chat", "chat", "attic"] {
        made.push(Pair::make(b, room, "text").await);
    }
    let [ann, ben, cat, dan] = <[Pair; 4]>::try_from(made).expect("four pairs");
    let mut ann_pipe = ClientSocket::open(a, &ann).await;
    let mut ben_pipe = ClientSocket::open(b, &ben).await;
    let mut cat_pipe = ClientSocket::open(c, &cat).await;
    let mut dan_pipe = ClientSocket::open(b, &dan).await;
    let mut over_ann = Sibling::open(c, &ann).await;
    let mut over_ben = Sibling::open(a, &ben).await;
    let mut over_cat = Sibling::open(a, &cat).await;

    cat_pipe.text("one").await;
    ann_pipe.until_received(1).await;
    ben_pipe.until_received(1).await;

    // Pause Ann: Ben goes on.
    let paused = over_ann.must("client.pause", json!({"direction": "out", "policy": "buffer", "key": "p"})).await;
    assert_eq!(position(&paused), 1);
    for word in ["two", "three", "four"] {
        cat_pipe.text(word).await;
    }
    ben_pipe.until_received(4).await;
    eventually("three frames wait for Ann", async || {
        let state = over_ann.must("pair.get", json!({})).await;
        (counter(&state, "queued_frames") == 3).then_some(())
    })
    .await;
    assert_eq!(ann_pipe.received(), 1, "a paused pipe is silent");
    let resumed = over_ann.must("client.resume", json!({"direction": "out", "key": "r"})).await;
    assert_eq!(resumed["buffered"], 3, "{resumed}");
    ann_pipe.until_received(4).await;
    effect(&mut over_ann, "client.paused", "p").await;
    effect(&mut over_ann, "client.unpaused", "r").await;

    // Push to Ben: a frame of an agent's own, at the place that was told.
    let pushed = over_ben.must("client.push", json!({"text": "whisper", "key": "w"})).await;
    assert_eq!(position(&pushed), 5, "the pushed frame is Ben's fifth");
    ben_pipe.until_received(5).await;

    // Move Ann to the attic, where Dan speaks; the chat goes on without her.
    let moved = over_ann.must("client.move", json!({"room": "attic", "key": "m"})).await;
    assert_eq!((&moved["from"], &moved["to"]), (&json!("chat"), &json!("attic")), "{moved}");
    assert_eq!(position(&moved), 4);
    effect(&mut over_ann, "client.moved", "m").await;
    cat_pipe.text("five").await;
    dan_pipe.text("boo").await;
    ann_pipe.text("hello, attic").await;
    ann_pipe.until_received(5).await;
    ben_pipe.until_received(6).await;
    dan_pipe.until_received(1).await;

    // Close Cat, from another node.
    let bye = json!({"code": 4001, "reason": "that will do", "key": "c"});
    over_cat.must("client.close", bye).await;
    let closed = effect(&mut over_cat, "client.closed", "c").await;
    assert_eq!(closed["data"]["by"], "sibling", "{closed}");
    assert_eq!(closed["data"]["code"], 4001, "{closed}");
    let end = cat_pipe.closed().await;
    assert_eq!((end.code, end.reason.as_str()), (Some(4001), "that will do"));

    // A last frame through every pipe that is left, and the count of all.
    over_ann.must("client.push", json!({"text": "last"})).await;
    over_ben.must("client.push", json!({"text": "last"})).await;
    ann_pipe.until_received(6).await;
    ben_pipe.until_received(7).await;
    let chat = ["one", "two", "three", "four"];
    assert_eq!(ann_pipe.texts(), [&chat[..], &["boo", "last"]].concat());
    assert_eq!(ben_pipe.texts(), [&chat[..], &["whisper", "five", "last"]].concat());
    assert_eq!(dan_pipe.texts(), ["hello, attic"]);
    assert_eq!(cat_pipe.texts(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_moves_away_and_back_gets_two_whole_runs() {
    let cluster = Cluster::redis(3, &Settings::new()).await;
    let (a, b, c) = (cluster.node(0), cluster.node(1), cluster.node(2));
    let from = Pair::make(a, "cam", "any").await;
    let stays = Pair::make(a, "cam", "any").await;
    let roams = Pair::make(a, "cam", "any").await;
    let mut sender = ClientSocket::open(b, &from).await;
    let mut stayer = ClientSocket::open(a, &stays).await;
    let mut roamer = ClientSocket::open(c, &roams).await;
    let mut over_roamer = Sibling::open(a, &roams).await;
    // Both watch before the first frame is sent.
    sender.text("0").await;
    stayer.until_received(1).await;
    roamer.until_received(1).await;

    let frames: u64 = 2_000;
    let send = async {
        for n in 1..=frames {
            // Kinds alternate: opcode and bytes arrive as they were sent.
            let bytes = n.to_string();
            match n % 2 {
                0 => sender.text(bytes).await,
                _ => sender.binary(bytes).await,
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    };
    let roam = async {
        roamer.until_received(100).await;
        let away = over_roamer.must("client.move", json!({"room": "elsewhere"})).await;
        let back = over_roamer.must("client.move", json!({"room": "cam"})).await;
        (position(&away), position(&back))
    };
    let ((), (away, back)) = tokio::join!(send, roam);
    assert_eq!(away, back, "nobody speaks elsewhere");
    stayer.until_received(usize::try_from(frames).expect("a count") + 1).await;
    sender.text("last").await;
    stayer.next().await;
    eventually("the last frame came", async || {
        (roamer.frames().last() == Some(&Message::text("last"))).then_some(())
    })
    .await;

    let (all, seen) = (stayer.frames(), roamer.frames());
    assert_eq!(all.len(), usize::try_from(frames).expect("a count") + 2);
    for (n, frame) in all.iter().enumerate().skip(1).take(all.len() - 2) {
        assert_eq!(frame.is_text(), n % 2 == 0, "frame {n} has kept its kind");
        assert_eq!(frame.clone().into_data(), n.to_string(), "frame {n} has kept its bytes");
    }
    assert_eq!(seen[..away], all[..away], "before it left, every frame, and none after its position");
    let rest = seen.len() - away;
    assert_eq!(seen[away..], all[all.len() - rest..], "after it came back, every frame");
}
