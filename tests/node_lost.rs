//! A node that dies without a word costs only its own sockets.

mod support;

use serde_json::json;
use support::{ClientSocket, Cluster, Pair, Settings, Sibling, eventually, kind_of};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_node_held_is_taken_over() {
    let mut cluster = Cluster::redis(3, &Settings::new()).await;
    let lost = Pair::make(cluster.node(1), "hall", "text").await;
    let idle = Pair::make(cluster.node(1), "hall", "text").await;
    let stays = Pair::make(cluster.node(1), "hall", "text").await;
    let mut pipe = ClientSocket::open(cluster.node(0), &lost).await;
    let mut idle_pipe = ClientSocket::open(cluster.node(0), &idle).await;
    let mut stayer = ClientSocket::open(cluster.node(1), &stays).await;
    let mut far = Sibling::open(cluster.node(1), &lost).await;
    let mut far_idle = Sibling::open(cluster.node(2), &idle).await;
    let near = Sibling::open(cluster.node(0), &lost).await;
    let cursor = near.cursor();
    pipe.text("before").await;
    stayer.until_received(1).await;

    cluster.node_mut(0).kill();
    assert_eq!(pipe.closed().await.code, None, "no goodbye");
    // Whoever comes back at once need not wait until the death is certain.
    let mut again = ClientSocket::open(cluster.node(2), &lost).await;
    let opened = far.event_where("client.opened", |params| params["data"]["epoch"] == 2).await;
    assert_eq!(opened["data"]["room"], "hall", "{opened}");
    far.must("client.push", json!({"text": "here again"})).await;
    assert_eq!(again.next_text().await, "here again");
    stayer.text("still in the hall").await;
    assert_eq!(again.next_text().await, "still in the hall");
    // The sibling that was on the dead node wakes elsewhere.
    let mut woken = Sibling::wake(cluster.node(1), &lost, &cursor).await;
    woken.event_where("client.opened", |params| params["data"]["epoch"] == 2).await;

    // Of the one that does not come back, its sibling hears.
    let closed = far_idle.event("client.closed").await;
    assert_eq!(closed["data"]["by"], "node_lost", "{closed}");
    assert_eq!(closed["data"]["epoch"], 1, "{closed}");
    assert_eq!(closed["data"]["clean"], false, "{closed}");
    idle_pipe.closed().await;
    assert_eq!(far_idle.must("pair.get", json!({})).await["client"], "detached");
    eventually("two are left in the hall", async || {
        let page = far.must("room.members", json!({})).await;
        (page["members"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let closes = far_idle.story().iter().filter(|params| kind_of(params) == "client.closed").count();
    assert_eq!(closes, 1, "two nodes buried it, and it died once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_gives_up_what_others_took() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let pair = Pair::make(b, "hall", "text").await;
    let other = Pair::make(b, "hall", "text").await;
    let mut old = ClientSocket::open(a, &pair).await;
    let mut witness = ClientSocket::open(b, &other).await;
    let mut sibling = Sibling::open(b, &pair).await;
    old.text("one").await;
    witness.until_received(1).await;
    a.signal("STOP");
    let mut new = ClientSocket::open(b, &pair).await;
    sibling.event_where("client.opened", |params| params["data"]["epoch"] == 2).await;
    a.signal("CONT");
    assert_eq!(old.closed().await.code, Some(3509), "the older socket learns of the newer");
    sibling.must("client.push", json!({"text": "for the new"})).await;
    assert_eq!(new.next_text().await, "for the new");
    new.text("two").await;
    eventually("the witness heard the new one", async || witness.texts().contains(&"two".to_owned()).then_some(()))
        .await;
    assert_eq!(sibling.must("pair.get", json!({})).await["epoch"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopped_node_still_heard_reaches_nobody() {
    let cluster = Cluster::redis(2, &Settings::new().set("NODE_LEASE_SECONDS", 1)).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let (pair, other) = (Pair::make(b, "hall", "text").await, Pair::make(b, "hall", "text").await);
    let mut old = ClientSocket::open(a, &pair).await;
    let witness = ClientSocket::open(b, &other).await;
    let mut sibling = Sibling::open(b, &pair).await;
    a.signal("STOP");
    old.text("ghost").await;
    let mut new = ClientSocket::open(b, &pair).await;
    sibling.event_where("client.opened", |params| params["data"]["epoch"] == 2).await;
    a.signal("CONT");
    assert_eq!(old.closed().await.code, Some(3509));
    // Behind all that the stopped node can have said.
    new.text("after").await;
    eventually("the new one is heard", async || witness.texts().contains(&"after".to_owned()).then_some(())).await;
    assert_eq!(witness.texts(), ["after"], "one client socket speaks for the pair");
    let story: Vec<_> = sibling.story();
    let closed: Vec<_> = story.iter().filter(|params| kind_of(params) == "client.closed").collect();
    assert_eq!(closed.len(), 1, "{story:?}");
    assert_eq!(closed[0]["data"]["by"], "node_lost", "{story:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_finds_a_stopped_node_takes_effect_where_the_pair_is_now() {
    let patient = Settings::new().set("NODE_LEASE_SECONDS", 2).set("COMMAND_TIMEOUT_SECONDS", 60);
    let cluster = Cluster::redis(2, &patient).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    let pair = Pair::make(b, "hall", "text").await;
    let mut sibling = Sibling::open(b, &pair).await;
    let mut old = ClientSocket::open(a, &pair).await;
    sibling.event("client.opened").await;
    a.signal("STOP");
    // On its way to the node that has the client socket, and read there when it has it no more.
    let push = sibling.ask("client.push", json!({"text": "where are you"})).await;
    let keyed = sibling.ask("client.push", json!({"text": "and still", "key": "k"})).await;
    assert_eq!(sibling.event("client.closed").await["data"]["by"], "node_lost");
    let mut new = ClientSocket::open(b, &pair).await;
    sibling.event("client.opened").await;
    a.signal("CONT");
    for id in [push, keyed] {
        assert!(sibling.reply(id).await.is_ok());
    }
    let mut texts = [new.next_text().await, new.next_text().await];
    texts.sort();
    assert_eq!(texts, ["and still", "where are you"]);
    old.closed().await;
    assert_eq!(old.received(), 0, "nothing took effect on the socket that was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_that_wait_are_ended_by_whoever_is_left() {
    let settings = Settings::new().set("NODE_LEASE_SECONDS", 1).set("DRAIN_SECONDS", 1);
    let mut cluster = Cluster::redis(3, &settings).await;
    let mut waiting = Vec::new();
    for node in [0, 1] {
        let home = cluster.node(node);
        // One whose client socket is gone, and one that never had any.
        for opens in [true, false] {
            let pair = Pair::from(home, json!({"room": "hall", "format": "text", "linger": 6})).await;
            let mut sibling = Sibling::open(cluster.node(2), &pair).await;
            if opens {
                let pipe = ClientSocket::open(home, &pair).await;
                sibling.event("client.opened").await;
                pipe.close(1000, "bye").await;
                sibling.event("client.closed").await;
            }
            waiting.push(sibling);
        }
    }
    cluster.node_mut(0).kill();
    cluster.node(1).signal("TERM");
    assert!(cluster.node_mut(1).exit(std::time::Duration::from_secs(10)).await.success());
    for sibling in &mut waiting {
        let ended = sibling.event("pair.ended").await;
        assert_eq!(ended["data"]["reason"], "no client socket within its linger", "{ended}");
    }
}
