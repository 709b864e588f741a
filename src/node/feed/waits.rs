//! What a feed waits for, where there is such a thing.

use std::pin::Pin;

use futures_util::future::BoxFuture;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::node::{Facts, follow::Follower};

/// Before the story can go on.
pub(super) enum Step {
    Looked(Option<Facts>),
    Opened(Follower),
}

pub(super) async fn proceed(talk: &mut Option<Follower>) {
    match talk {
        Some(talk) => talk.proceed().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn taken(step: &mut Option<BoxFuture<'static, Step>>) -> Step {
    match step {
        Some(step) => step.await,
        None => std::future::pending().await,
    }
}

/// Completes when the drain begins, if that is still to be told.
pub(super) async fn begun(draining: &mut Option<Pin<Box<WaitForCancellationFutureOwned>>>) {
    match draining {
        Some(draining) => draining.as_mut().await,
        None => std::future::pending().await,
    }
}
