//! Pauses and moves at full speed: exact to the frame.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use rand::Rng as _;
use rstest::rstest;
use serde_json::json;

use crate::{
    PAUSE, ROOM, WINDOW, count, number, numbered, numbers,
    support::{Agent, ClientSocket, Cluster, Kind, Settings, Sibling, specify},
};

/// Frames of the other room carry this besides their numbers.
const OTHER: u64 = 1 << 40;
/// How often each direction is paused.
const TURNS: usize = 6;

/// Sends as fast as it can until it is told to stop; returns how many frames that were.
async fn pour(sender: &mut ClientSocket, tag: u64, pacer: &mut ClientSocket, done: &AtomicBool) -> u64 {
    let mut sent = 0;
    while !done.load(SeqCst) {
        let some = rand::rng().random_range(1..=100);
        sender.burst(numbered((sent + 1..=sent + some).map(|number| number | tag))).await;
        sent += some;
        let near = async {
            while pacer.last().map_or(0, |frame| number(&frame) & !OTHER) + WINDOW < sent {
                pacer.more().await;
            }
        };
        drop(tokio::time::timeout(PAUSE, near).await);
    }
    sent
}

/// Pauses one direction again and again; returns where each pause stood, where it ended, and what was dropped in it.
async fn pauses(sibling: &mut Sibling, direction: &str, pipe: Option<&ClientSocket>) -> Vec<(usize, usize, usize)> {
    let mut told = Vec::new();
    for policy in ["buffer", "drop", "hold"].iter().cycle().take(TURNS) {
        let paused = sibling.must("client.pause", json!({"direction": direction, "policy": policy})).await;
        for _ in 0..3 {
            sibling.must("pair.get", json!({})).await;
        }
        let seen = pipe.map_or(0, ClientSocket::received);
        let resumed = sibling.must("client.resume", json!({"direction": direction})).await;
        let (stop, go) = (count(&paused, "position"), count(&resumed, "position"));
        assert!(seen <= stop, "{seen} frames came, and it stopped at {stop}");
        let dropped = count(&resumed, "dropped");
        assert!(*policy == "drop" || dropped == 0 && go == stop, "{policy}: {paused} {resumed}");
        told.push((stop, go, dropped));
        for _ in 0..3 {
            sibling.must("pair.get", json!({})).await;
        }
    }
    told
}

#[rstest]
#[case::alone(Kind::Memory, "sender")]
#[case::across(Kind::Redis, "sender")]
#[case::across_in_one_order(Kind::Redis, "room")]
#[tokio::test(flavor = "multi_thread")]
async fn pauses_and_moves_are_exact_to_the_frame_at_full_speed(#[case] kind: Kind, #[case] order: &str) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (rooms, node) = ([ROOM, "elsewhere"], |n| cluster.node(n));
    for room in rooms {
        specify(node(0), room, json!({"format": "binary", "order": order, "queue_bytes": 64 << 20})).await;
    }
    let enter = async |n, room| Agent::enter(node(n), node(n + 1), json!({"room": room, "format": "binary"})).await;
    let (mut here, mut there) = (enter(0, rooms[0]).await, enter(1, rooms[1]).await);
    let (mut near, mut far) = (enter(1, rooms[0]).await, enter(2, rooms[1]).await);
    let (mut paused, mut mover) = (enter(2, rooms[0]).await, enter(0, rooms[0]).await);
    let (done, paused_enough) = (AtomicBool::new(false), AtomicBool::new(false));
    let working = async {
        // Mostly to where it is already: however often, it misses nothing.
        let moving = async {
            let mut moves = Vec::new();
            while !paused_enough.load(SeqCst) {
                let to = rooms[usize::from(moves.len() % 8 == 0)];
                let moved = mover.sibling.must("client.move", json!({"room": to})).await;
                moves.push((to, count(&moved, "position")));
            }
            moves
        };
        let (pipe, sibling) = (&paused.pipe, &mut paused.sibling);
        let pausing = async {
            let both = tokio::join!(pauses(&mut here.sibling, "in", None), pauses(sibling, "out", Some(pipe)));
            paused_enough.store(true, SeqCst);
            both
        };
        let all = tokio::join!(pausing, moving);
        done.store(true, SeqCst);
        all
    };
    let (((ins, outs), moves), sent, _) = tokio::join!(
        working,
        pour(&mut here.pipe, 0, &mut near.pipe, &done),
        pour(&mut there.pipe, OTHER, &mut far.pipe, &done)
    );
    // What the pauses of the sender dropped is missing for everyone, and nothing else is.
    let mut published: Vec<_> = (1..=sent).collect();
    let dropped = |number: &u64| {
        let number = usize::try_from(*number).expect("a count");
        ins.iter().any(|(stop, go, _)| (stop + 1..=*go).contains(&number))
    };
    published.retain(|number| !dropped(number));
    assert_eq!(sent as usize - published.len(), ins.iter().map(|(.., dropped)| dropped).sum::<usize>());
    near.pipe.until_received(published.len()).await;
    assert_eq!(numbers(&near.pipe), published);

    // Pauses towards a client drop exactly so many frames, exactly there.
    let lost: usize = outs.iter().map(|(.., dropped)| dropped).sum();
    paused.pipe.until_received(published.len() - lost).await;
    let mut expected = published.clone();
    for (stop, go, dropped) in &outs {
        assert_eq!(stop, go, "no frame passes a pause");
        expected.drain(*stop..stop + dropped);
    }
    assert_eq!(numbers(&paused.pipe), expected);

    // Before a move's position only frames of the room that it left, one behind the other.
    let (mut from, mut room, frames) = (0, rooms[0], numbers(&mover.pipe));
    let (mut parts, moved) = (Vec::new(), moves.len());
    for (to, position) in moves {
        if to != room {
            parts.push((room, from..position));
            (from, room) = (position, to);
        }
    }
    for (room, part) in parts {
        let part = &frames[part];
        assert!(part.iter().all(|number| (number & OTHER != 0) == (room == rooms[1])), "a frame of another room");
        if let (Some(first), true) = (part.first(), room == rooms[0]) {
            let begin = published.binary_search(first).expect("a frame that was published");
            assert_eq!(part, &published[begin..begin + part.len()], "every frame between two moves");
        } else {
            assert!(part.windows(2).all(|pair| pair[1] == pair[0] + 1), "every frame between two moves");
        }
    }
    println!(
        "{kind:?}, order {order}: {sent} frames, {moved} moves, {lost} dropped in pauses out, {} in",
        sent as usize - published.len()
    );
}
