//! Accepting connections: as many as are allowed, each with a time limit on what it asks.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower::ServiceExt as _;

use crate::node::Node;

/// Connections that arrive at once wait in the kernel, not in front of a refusal.
const BACKLOG: u32 = 4_096;
/// How long a request's head may take to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The largest head of a request, in bytes.
const LARGEST_HEAD: usize = 16 << 10;

/// A place among the connections. A socket keeps it until it is gone.
pub(super) type Permit = Arc<OwnedSemaphorePermit>;

/// An address that is listened on.
pub struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    most: usize,
}

/// Listens on an address, for at most `most` connections.
///
/// # Errors
/// When the address can't be had.
pub fn listen(address: SocketAddr, most: usize) -> io::Result<Door> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    Ok(Door { listener, places: Arc::new(Semaphore::new(most)), most })
}

impl Door {
    /// The address that is listened on.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts connections until the node has stopped.
    pub async fn serve(self, node: Arc<Node>, routes: Router) {
        let mut warned = false;
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = node.stopped() => return,
            };
            let Ok((tcp, peer)) = accepted else {
                // Out of file descriptors, most likely: a moment later some are free.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            drop(tcp.set_nodelay(true));
            match Arc::clone(&self.places).try_acquire_owned() {
                Ok(place) => {
                    let serving = serve_one(Arc::clone(&node), tcp, Arc::new(place), routes.clone());
                    node.spawn("connection", async move {
                        if let Err(error) = serving.await {
                            tracing::debug!(%peer, error = &error as &dyn std::error::Error, "a connection ended badly");
                        }
                    });
                }
                Err(_) => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!(most = self.most, "no more connections: raise SIBLING_MAX_CONNECTIONS");
                    }
                    refuse(tcp).await;
                }
            }
        }
    }
}

async fn serve_one(node: Arc<Node>, tcp: TcpStream, place: Permit, routes: Router) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(Arc::clone(&place));
        routes.clone().oneshot(request)
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(LARGEST_HEAD)
            .serve_connection(TokioIo::new(tcp), service)
            .with_upgrades()
    );
    tokio::select! {
        result = connection.as_mut() => result,
        () = node.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// Says that there is no place, without waiting for what the peer would ask.
async fn refuse(mut tcp: TcpStream) {
    const FULL: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    drop(tokio::time::timeout(Duration::from_millis(50), tcp.write_all(FULL)).await);
}
