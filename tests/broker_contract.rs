//! The broker's contract, clause by clause, on both back ends.

#[macro_use]
#[path = "support/clauses.rs"]
mod clauses;
#[path = "support/links.rs"]
mod links;
#[path = "support/process.rs"]
mod process;

use links::Cluster;
use sibling_sockets::{
    broker::{conformance, memory::Memory},
    protocol::NodeId,
};

/// Each clause once, for both back ends.
macro_rules! contract {
    ($($clause:ident)*) => {
        mod on_memory {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $clause() {
                let memory = Memory::new();
                let mut nodes = [(); 3].map(|()| memory.link(NodeId::fresh()));
                conformance::$clause(&mut nodes).await;
            })*
        }
        mod on_redis {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $clause() {
                let mut cluster = Cluster::start().await;
                conformance::$clause(&mut cluster.nodes).await;
                cluster.end().await;
            })*
        }
    };
}

each_clause!(contract);
