//! Bells: one task is told that there is something for it. Unlike the runtime's own kinds, a bell takes no more memory
//! while its task waits, nor a list of all who wait.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Acquire, Ordering::Release},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

/// Heard by one task.
#[derive(Default)]
pub struct Bell {
    rung: AtomicBool,
    hearer: AtomicWaker,
}

impl Bell {
    /// Rings until it is heard.
    pub fn ring(&self) {
        self.rung.store(true, Release);
        self.hearer.wake();
    }

    /// Completes when it has been rung since it was last heard.
    pub fn heard(&self) -> impl Future<Output = ()> + '_ {
        std::future::poll_fn(|cx| self.poll_heard(cx))
    }

    /// The same, for whoever polls it.
    pub fn poll_heard(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.rung.load(Acquire) {
            self.hearer.register(cx.waker());
        }
        // Rung in between, it was before the waker was there.
        if self.rung.load(Acquire) && self.rung.swap(false, AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}
