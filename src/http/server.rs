//! Accepting connections: as many as are allowed, in all and of one address, each with a time limit on what it asks.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use http::{HeaderValue, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower::ServiceExt as _;

use super::{
    limits::{Limits, Peer, Seat},
    problem,
};
use crate::{
    node::Node,
    protocol::{Failure, Fault},
};

/// Connections that arrive at once wait in the kernel, not in front of a refusal.
const BACKLOG: u32 = 4_096;
/// How long a request's head may take to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The largest head of a request, in bytes.
const LARGEST_HEAD: usize = 16 << 10;

/// A place among the connections, of all and of its address. A socket keeps it until it is gone.
#[derive(Clone)]
pub(super) struct Permit {
    _place: Arc<OwnedSemaphorePermit>,
    /// Behind a proxy each request has its own.
    pub(super) seat: Option<Arc<Seat>>,
}

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
    pub async fn serve(self, node: Arc<Node>, limits: Arc<Limits>, routes: Router) {
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
            let seat = match limits.seat(peer.ip()) {
                Ok(seat) => seat,
                Err(too_many) => {
                    refuse(tcp, &too_many).await;
                    continue;
                }
            };
            match Arc::clone(&self.places).try_acquire_owned() {
                Ok(place) => {
                    let permit = Permit { _place: Arc::new(place), seat };
                    let serving = serve_one(Arc::clone(&node), tcp, Peer(peer.ip()), permit, routes.clone());
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
                    refuse(tcp, &Failure::new(Fault::Overloaded, "the node has no place: try again")).await;
                }
            }
        }
    }
}

async fn serve_one(node: Arc<Node>, tcp: TcpStream, peer: Peer, permit: Permit, routes: Router) -> hyper::Result<()> {
    // One that is over its address' limit is told so and has to go.
    let goes = permit.seat.as_ref().is_some_and(|seat| seat.over);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(permit.clone());
        let answering = routes.clone().oneshot(request);
        async move {
            let mut response = answering.await?;
            if goes && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
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
async fn refuse(mut tcp: TcpStream, full: &Failure) {
    let answer = problem::unheard(full);
    drop(tokio::time::timeout(Duration::from_millis(50), tcp.write_all(answer.as_bytes())).await);
}
