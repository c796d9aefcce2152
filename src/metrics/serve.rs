//! What is answered to who scrapes, and to who asks whether stead is well.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{ALLOW, CONTENT_TYPE as CONTENT_TYPE_HEADER, HeaderValue};
use hyper::{Method, StatusCode};

use super::{Metrics, Pulse};
use crate::http::{self, Address, Answer, Request, Service};

/// What the page is, for who asks for it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How long the loop may take to take a turn. All that it does by itself takes milliseconds; a file of STATE on a disk that is
/// busy may take longer.
const TURN_BOUND: Duration = Duration::from_secs(5);

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}")]
pub struct MetricsError {
    address: Address,
    source: io::Error,
}

/// A server that is at work until it is dropped.
#[derive(Debug)]
pub struct Server {
    _http: http::Server,
}

/// An address that is listened on: who asks waits until they are served.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    http: http::Listener,
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// Where the address is in use, or cannot be listened on.
    pub fn bind(address: &Address) -> Result<Self, MetricsError> {
        let failed = |source| MetricsError { address: address.clone(), source };
        Ok(Self { http: http::bind(address).map_err(failed)?, address: address.clone() })
    }

    /// Serves these metrics, and how the loop with this pulse is.
    ///
    /// # Errors
    /// Where the kernel gives no thread for it.
    pub fn serve(self, metrics: Arc<Metrics>, pulse: Arc<Pulse>) -> Result<Server, MetricsError> {
        let endpoint = Endpoint { metrics, pulse, turn_bound: TURN_BOUND };
        let served = http::serve(self.http, "metrics", endpoint);
        let http = served.map_err(|source| MetricsError { address: self.address, source })?;
        Ok(Server { _http: http })
    }
}

/// What answers.
pub(super) struct Endpoint {
    pub(super) metrics: Arc<Metrics>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) turn_bound: Duration,
}

impl Endpoint {
    pub(super) async fn respond(&self, method: &Method, path: &str) -> Answer {
        if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
            return text(StatusCode::NOT_FOUND, "there is /metrics, /healthz and /readyz\n");
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "this can only be read: GET\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        if path == "/metrics" {
            return text(StatusCode::OK, &self.metrics.page());
        }
        let flaw = if path == "/healthz" { self.illness().await } else { self.unreadiness().await };
        match flaw {
            None => text(StatusCode::OK, "ok\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
        }
    }

    /// Why stead is not well.
    async fn illness(&self) -> Option<String> {
        // It is as it should be, and will be gone: who restarts what is ill is not to kill it.
        if self.pulse.is_ending() || self.pulse.is_felt_within(self.turn_bound).await {
            return None;
        }
        let bound = self.turn_bound;
        Some(format!(
            "the control loop has not taken a turn for {bound:?} though it was asked to: a call to the host hangs, \
             such as a disk that does not answer; the VMs run on, and stead can be killed and started again without harm to any"
        ))
    }

    /// Why stead does not keep the host as declared yet, or any more.
    async fn unreadiness(&self) -> Option<String> {
        if self.pulse.is_ending() {
            return Some("stead is stopping".to_owned());
        }
        if !self.metrics.has_passed() {
            return Some("the first full pass is not through".to_owned());
        }
        self.illness().await
    }
}

impl Service for Endpoint {
    async fn answer(&self, request: Request) -> Answer {
        self.respond(&request.head.method, request.head.uri.path()).await
    }
}

fn text(status: StatusCode, body: &str) -> Answer {
    let mut answer = Answer::new(body.to_owned());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE_HEADER, HeaderValue::from_static(CONTENT_TYPE));
    answer
}
