//! A room of ten thousand members, listed in pages while some come and go.

mod support;

use std::{collections::BTreeSet, time::Instant};

use serde_json::json;
use sibling_sockets::{
    broker::{Group, Member, redis},
    protocol::{NodeId, PairId},
};
use support::{ADMIN_KEY, Agent, Cluster, Settings};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const MEMBERS: usize = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_members_are_listed_in_pages() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    let url = cluster.redis.as_ref().expect("a cluster over redis").url();
    // They join as a node's clients do, through the same port, without ten thousand sockets.
    let (id, tasks, stopped) = (NodeId::fresh(), TaskTracker::new(), CancellationToken::new());
    let link = redis::connect(&url, id, "sib:", &tasks, &stopped).await.expect("redis is up");
    let group = Group::Room("stadium".parse().expect("a name"));
    let member = |pair: PairId| Member { id: pair.uuid(), node: id, value: bytes::Bytes::new() };
    let charter = bytes::Bytes::from_static(b"text");
    let pairs: Vec<_> = (0..MEMBERS).map(|_| PairId::fresh()).collect();
    for some in pairs.chunks(500) {
        let joins = some.iter().map(|pair| link.registry.join(&group, member(*pair), charter.clone(), None, None));
        for joined in futures_util::future::join_all(joins).await {
            joined.expect("redis is up").expect("there is room");
        }
    }
    let mut agent = Agent::enter(cluster.node(0), cluster.node(1), json!({"room": "stadium"})).await;

    // Over HTTP, while every tenth leaves: whoever stays is listed once, in order.
    let (mut listed, mut pages, mut slowest) = (Vec::new(), 0, 0.0_f64);
    let mut path = "/v1/rooms/stadium/members?limit=1000".to_owned();
    loop {
        let since = Instant::now();
        let reply = cluster.node(pages).ask("GET", &path, ADMIN_KEY, None).await;
        slowest = slowest.max(since.elapsed().as_secs_f64());
        let page = reply.json();
        let members = page["members"].as_array().expect("a list");
        assert!(members.len() <= 1_000);
        listed.extend(members.iter().map(|member| member["pair"].as_str().expect("a name").to_owned()));
        for pair in pairs.iter().skip(pages).step_by(100) {
            link.registry.leave(&group, &member(*pair), None).await.expect("redis is up");
        }
        pages += 1;
        let Some(after) = page["after"].as_str() else { break };
        path = format!("/v1/rooms/stadium/members?limit=1000&after={after}");
    }
    println!("{} members in {pages} pages, the slowest took {:.1} ms", listed.len(), slowest * 1_000.0);
    assert!(listed.is_sorted() && listed.windows(2).all(|two| two[0] != two[1]));
    let left: BTreeSet<_> = (0..pages).flat_map(|from| pairs.iter().skip(from).step_by(100)).collect();
    let listed: BTreeSet<_> = listed.into_iter().collect();
    for pair in pairs.iter().filter(|pair| !left.contains(pair)) {
        assert!(listed.contains(&pair.to_string()), "{pair} was there all the time");
    }
    assert!(listed.contains(&agent.pair.id));

    let beyond = "/v1/rooms/stadium/members?after=pair_7zzzzzzzzzzzzzzzzzzzzzzzzz";
    assert_eq!(cluster.node(0).ask("GET", beyond, ADMIN_KEY, None).await.json()["members"], json!([]));
    let nobody = cluster.node(0).ask("GET", "/v1/rooms/stadium/members?after=x", ADMIN_KEY, None).await;
    assert_eq!(nobody.problem(400), "invalid_params");

    // And by a sibling of a member.
    let page = agent.sibling.must("room.members", json!({"limit": 10})).await;
    assert_eq!(page["members"].as_array().map(Vec::len), Some(10));
    let next = agent.sibling.must("room.members", json!({"limit": 10, "after": page["after"]})).await;
    assert!(next["members"][0]["pair"].as_str() > page["members"][9]["pair"].as_str());
    let state = agent.sibling.must("room.get", json!({})).await;
    assert_eq!(state["members"], MEMBERS + 1 - left.len());
    stopped.cancel();
}
