//! Redis under Sentinel and Redis Cluster: the broker's contract, and fail-overs.

#[path = "support/redis_sets.rs"]
mod redis_sets;

use std::time::{Duration, Instant};

use redis_sets::{RedisCluster, Sentinels};

#[tokio::test(flavor = "multi_thread")]
async fn the_sets_do_what_they_say() {
    let at = Instant::now();
    let mut set = Sentinels::start(Duration::from_secs(1)).await;
    println!("sentinels start {:?}", at.elapsed());
    let at = Instant::now();
    set.fail_over().await;
    println!("planned {:?}", at.elapsed());
    set.whole().await;
    println!("whole {:?}", at.elapsed());
    let at = Instant::now();
    let before = set.primary();
    set.kill(before);
    set.elected(before).await;
    println!("killed {:?}", at.elapsed());
    set.restart(before).await;
    set.whole().await;
    println!("whole {:?}", at.elapsed());

    let at = Instant::now();
    let mut set = RedisCluster::start().await;
    println!("cluster start {:?}", at.elapsed());
    let at = Instant::now();
    let slot = set.slot("{x}");
    let before = set.primary_of("{x}");
    let now = set.fail_over(before).await;
    println!("planned {:?}", at.elapsed());
    set.whole().await;
    println!("whole {:?}", at.elapsed());
    let at = Instant::now();
    set.kill(now);
    set.elected(slot, now).await;
    println!("killed {:?}", at.elapsed());
    set.restart(now).await;
    set.whole().await;
    println!("whole {:?}", at.elapsed());
    let at = Instant::now();
    let to = (0..6).find(|i| *i != set.primary_of_slot(slot) && set.members[*i].is_primary()).unwrap();
    set.migrate(slot, to).await;
    println!("migrated {:?}", at.elapsed());
}
