//! Asking other servers: the key set's, and the authorizer.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioTimer,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a connection is kept open for the next request.
const IDLE: Duration = Duration::from_secs(30);
/// How many connections at most are kept so.
const MOST_IDLE: usize = 16;

/// An address elsewhere, and how to get there.
#[derive(Debug, Clone)]
pub struct Endpoint {
    url: Uri,
    connector: HttpsConnector<HttpConnector>,
}

impl Endpoint {
    /// Reads a URL, and for https the certificates that this machine trusts.
    ///
    /// # Errors
    /// A phrase that says what is wrong with it; without the URL, which may have a secret in its query.
    pub fn new(url: &str) -> Result<Self, String> {
        let url = url.parse::<Uri>().ok().filter(|url| {
            matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
        });
        let url = url.ok_or("must be a whole URL, as in https://example.org/path")?;
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("must be without a user: a secret can stand in its query".into());
        }
        let provider = || std::sync::Arc::new(ring::default_provider());
        let builder = if url.scheme_str() == Some("https") {
            HttpsConnectorBuilder::new().with_provider_and_native_roots(provider()).map_err(|error| {
                format!("needs certificates to trust, and there are none here (SSL_CERT_FILE may name some): {error}")
            })?
        } else {
            let config = ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?;
            let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
            HttpsConnectorBuilder::new().with_tls_config(config)
        };
        Ok(Self { url, connector: builder.https_or_http().enable_http1().build() })
    }

    /// Whether others on the way can read what is said: without TLS, and not to this machine itself.
    #[must_use]
    pub fn is_open_to_others(&self) -> bool {
        self.url.scheme_str() == Some("http") && !matches!(self.host(), "localhost" | "127.0.0.1" | "[::1]")
    }

    fn host(&self) -> &str {
        self.url.host().unwrap_or_default()
    }
}

/// Where background work runs: a node waits for it in a drain, and cuts it off when it has stopped.
#[derive(Debug, Clone, Default)]
pub struct Background {
    /// What waits.
    pub tasks: TaskTracker,
    /// What cuts off.
    pub stopped: CancellationToken,
}

impl Background {
    /// Runs something until it is done or cut off.
    pub(super) fn run(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<Option<()>> {
        self.tasks.spawn(self.stopped.clone().run_until_cancelled_owned(task))
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Background {
    fn execute(&self, task: F) {
        drop(self.run(task));
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("no connection")]
    Unreachable(#[from] hyper_util::client::legacy::Error),
    #[error("the answer is {0}")]
    Status(StatusCode),
    #[error("the answer broke off, or has more than {0} bytes")]
    Body(usize),
    #[error("the request can't be made")]
    Request(#[from] http::Error),
}

impl FetchError {
    /// The error, and what was at the bottom of it.
    pub(super) fn sentence(&self) -> String {
        let mut bottom: &dyn std::error::Error = self;
        while let Some(deeper) = bottom.source() {
            bottom = deeper;
        }
        match std::error::Error::source(self) {
            None => self.to_string(),
            Some(_) => format!("{self}: {bottom}"),
        }
    }
}

/// One server elsewhere, and the connections to it that are open.
pub(super) struct Remote {
    url: Uri,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    patience: Duration,
    /// The largest answer that is read, in bytes.
    largest: usize,
}

impl Remote {
    pub(super) fn new(endpoint: &Endpoint, patience: Duration, largest: usize, background: Background) -> Self {
        let client = Client::builder(background)
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MOST_IDLE)
            .build(endpoint.connector.clone());
        Self { url: endpoint.url.clone(), client, patience, largest }
    }

    /// The server's name, for the log: the rest of its URL may be secret.
    pub(super) fn host(&self) -> &str {
        self.url.host().unwrap_or_default()
    }

    /// Asks for what is there.
    pub(super) async fn get(&self) -> Result<Bytes, FetchError> {
        let request = Request::get(&self.url).header(header::ACCEPT, "application/json");
        self.answer(request.body(Full::default())?).await
    }

    /// Sends JSON, and gets what is said to it.
    pub(super) async fn post(&self, json: String) -> Result<Bytes, FetchError> {
        let request = Request::post(&self.url).header(header::CONTENT_TYPE, "application/json");
        self.answer(request.body(json.into())?).await
    }

    /// A whole answer, in time and not too large. Redirections are not followed: the address is the one configured.
    async fn answer(&self, request: Request<Full<Bytes>>) -> Result<Bytes, FetchError> {
        let answering = async {
            let response = self.client.request(request).await?;
            if !response.status().is_success() {
                return Err(FetchError::Status(response.status()));
            }
            let body = Limited::new(response.into_body(), self.largest).collect().await;
            Ok(body.map_err(|_| FetchError::Body(self.largest))?.to_bytes())
        };
        tokio::time::timeout(self.patience, answering).await.map_err(|_| FetchError::Late(self.patience))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_urls_are_refused_by_reason() {
        for (url, word) in [
            ("example.org/keys", "whole URL"),
            ("/keys", "whole URL"),
            ("ftp://example.org/keys", "whole URL"),
            ("https://", "whole URL"),
            ("http://user:word@example.org/", "without a user"),
            ("not a url", "whole URL"),
        ] {
            let said = Endpoint::new(url).unwrap_err();
            assert!(said.contains(word), "{url}: {said}");
        }
        assert!(!Endpoint::new("http://127.0.0.1:1/keys").unwrap().is_open_to_others());
        assert!(Endpoint::new("http://keys.example.org/").unwrap().is_open_to_others());
    }
}
