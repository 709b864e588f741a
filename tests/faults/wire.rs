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
                    if *state.borrow() == State::Whole
                        && let Ok(far) = TcpStream::connect(target).await
                    {
                        carry(near, far, state).await;
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

async fn carry(near: TcpStream, far: TcpStream, mut state: watch::Receiver<State>) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let (there, back) = (state.clone(), state.clone());
    tokio::select! {
        () = pump(&mut near_read, &mut far_write, there) => {}
        () = pump(&mut far_read, &mut near_write, back) => {}
        _ = state.wait_for(|state| *state == State::Closed) => {}
    }
}

async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        // What was read when the wire went silent goes on when it is whole again: TCP loses nothing.
        if state.wait_for(|state| *state != State::Silent).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::support::within;

    #[tokio::test]
    async fn it_holds_back_and_forwards_later_and_hangs_up() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire::to(echo.local_addr().unwrap()).await;
        let mut near = TcpStream::connect(wire.addr()).await.unwrap();
        let (mut far, _) = echo.accept().await.unwrap();
        let mut one = [0; 1];
        near.write_all(b"a").await.unwrap();
        far.read_exact(&mut one).await.unwrap();

        wire.set(State::Silent);
        near.write_all(b"b").await.unwrap();
        // The length of the silence, not a wait for a state.
        let silent = tokio::time::timeout(Duration::from_millis(200), far.read_exact(&mut one)).await;
        assert!(silent.is_err(), "nothing comes through a silent wire");
        wire.set(State::Whole);
        within("what was on the way", far.read_exact(&mut one)).await.unwrap();
        assert_eq!(one, *b"b");

        wire.set(State::Closed);
        assert_eq!(within("the end", near.read(&mut one)).await.unwrap_or(0), 0);
        let mut late = TcpStream::connect(wire.addr()).await.unwrap();
        assert_eq!(within("the refusal", late.read(&mut one)).await.unwrap_or(0), 0);
    }
}
