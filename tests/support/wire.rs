//! A wire between a node and its broker that can be cut: a TCP proxy that stops forwarding, or hangs up.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the wire does with what it is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    /// Everything is forwarded.
    Whole,
    /// Nothing is forwarded and nothing is closed: what is on the way waits, as with a cable that was pulled. It
    /// arrives late when the wire is whole again, even if its sender has given the connection up by then.
    Silent,
    /// The same for connections that were open before; new ones go through.
    Stuck,
    /// Open connections are closed and new ones refused at once.
    Closed,
}

/// The proxy; it ends with this value.
pub struct Wire {
    addr: SocketAddr,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

impl Wire {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let (state, seen) = watch::channel(State::Whole);
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { continue };
                let mut state = seen.clone();
                tokio::spawn(async move {
                    // A silent wire takes no new connection through either; whoever waits may wait.
                    if state.wait_for(|state| *state != State::Silent).await.is_err() {
                        return;
                    }
                    let begun = *state.borrow();
                    if begun != State::Closed
                        && let Ok(far) = TcpStream::connect(target).await
                    {
                        carry(near, far, state, begun).await;
                    }
                });
            }
        });
        Self { addr, state, accepting }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
        self.state.send_replace(State::Closed);
    }
}

async fn carry(near: TcpStream, far: TcpStream, mut state: watch::Receiver<State>, begun: State) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let (there, back) = (state.clone(), state.clone());
    tokio::select! {
        () = pump(&mut near_read, &mut far_write, there, begun) => {}
        () = pump(&mut far_read, &mut near_write, back, begun) => {}
        _ = state.wait_for(|state| *state == State::Closed) => {}
    }
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut state: watch::Receiver<State>,
    begun: State,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        // What was read when the wire went silent goes on when it is whole again: TCP loses nothing.
        let passes = |state: &State| *state != State::Silent && (*state != State::Stuck || begun == State::Stuck);
        if state.wait_for(passes).await.is_err() || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
