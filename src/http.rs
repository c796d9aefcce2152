//! HTTP/1.1 for programs on this host: on a unix socket or a loopback address. What is served there is its caller's matter.
//!
//! A server has a thread of its own: however many requests come, and however long an answer takes, the control loop waits for
//! none of it. One request a connection, all of it bounded: in time, in bytes, and in how many there are at once.

mod clients;
mod listener;

pub use listener::{Address, Listener, NoAddress, bind};

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::timeout;

use clients::Clients;
use listener::{Accepting, SocketFile, Stream};

/// How long clients are waited for.
const PATIENCE: Patience = Patience { head: Duration::from_secs(10), connection: Duration::from_secs(20) };
/// The largest head of a request in bytes: its first line and its headers.
const HEAD_MAX: usize = 16 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Bytes of a body that are taken from a client, to be dropped.
const BODY_MAX: u64 = 64 << 10;
/// How long to wait when the kernel has no descriptor left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long a client is waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Until its request's head is here.
    head: Duration,
    /// How long its connection lasts at most, whatever it does.
    connection: Duration,
}

/// An answer, whose body is text.
pub type Answer = hyper::Response<String>;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A process on this host, through a unix socket.
    Process {
        /// Whose it is.
        uid: u32,
        /// Which it was when it connected.
        pid: Option<i32>,
    },
    /// Somebody at this address.
    Address(SocketAddr),
    /// The kernel could not tell.
    Unknown,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { uid, pid: Some(pid) } => write!(f, "pid {pid} of user {uid}"),
            Self::Process { uid, pid: None } => write!(f, "user {uid}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Unknown => f.write_str("a client that is not known"),
        }
    }
}

/// What a client asks. What its body said is dropped.
#[derive(Debug)]
pub struct Request {
    /// Its first line and its headers.
    pub head: Parts,
    /// Who asks.
    pub client: Client,
    /// Whether its body is longer than what is taken of one: the rest was left unread.
    pub is_too_long: bool,
}

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one. It may take its time: only clients of this server wait for it.
    fn answer(&self, request: Request) -> impl Future<Output = Answer> + Send;
}

/// A server at work, until it is dropped. What it has begun to answer then may get lost.
#[derive(Debug)]
pub struct Server {
    /// Its thread ends when this is gone. Nobody waits for that: an answer may hang.
    _stop: oneshot::Sender<Infallible>,
    _socket: Option<SocketFile>,
}

/// Serves from a thread of this name.
///
/// # Errors
/// Where the kernel gives no thread, or nothing to wait for events with.
pub fn serve<S: Service>(listener: Listener, thread: &str, service: S) -> io::Result<Server> {
    serve_with(listener, thread, service, PATIENCE)
}

fn serve_with<S: Service>(listener: Listener, thread: &str, service: S, patience: Patience) -> io::Result<Server> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (accepting, socket) = {
        let _inside = runtime.enter();
        listener.ready()?
    };
    let (stop, stopped) = oneshot::channel::<Infallible>();
    std::thread::Builder::new().name(thread.to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = stopped => {}
                () = accept(&accepting, Arc::new(service), patience) => {}
            }
        });
    })?;
    Ok(Server { _stop: stop, _socket: socket })
}

/// Takes in one client after the other.
async fn accept<S: Service>(accepting: &Accepting, service: Arc<S>, patience: Patience) {
    let mut clients = Clients::default();
    loop {
        let (stream, client) = match accepting.next().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        clients.make_room().await;
        let (service, is_heard) = (Arc::clone(&service), Arc::new(AtomicBool::new(false)));
        let heard = Arc::clone(&is_heard);
        clients.add(is_heard, async move {
            match stream {
                Stream::Unix(stream) => serve_one(stream, client, &*service, &heard, patience).await,
                Stream::Tcp(stream) => serve_one(stream, client, &*service, &heard, patience).await,
            }
        });
        // Who sent its request along is heard before the next one comes.
        tokio::task::yield_now().await;
    }
}

/// Serves one client to its end.
async fn serve_one<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    client: Client,
    service: &S,
    is_heard: &AtomicBool,
    patience: Patience,
) {
    let answer = |request: hyper::Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        let is_too_long = !drop_body(body).await?;
        is_heard.store(true, Ordering::Relaxed);
        Ok::<_, hyper::Error>(service.answer(Request { head, client, is_too_long }).await)
    };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience.head).max_headers(HEADERS_MAX).max_buf_size(HEAD_MAX);
    // One request a connection. A client that has said all it has to say may close its side before it is answered.
    http.keep_alive(false).half_close(true);
    match timeout(patience.connection, http.serve_connection(TokioIo::new(stream), service_fn(answer))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%client, %error, "a client went away, or makes no sense"),
        Err(_) => tracing::debug!(%client, "a client took longer than {:?}", patience.connection),
    }
}

/// Takes a body, so that its client is through with it before it is answered and the answer is not lost with what nobody read.
/// False when it is longer than what is taken of one.
async fn drop_body(mut body: Incoming) -> Result<bool, hyper::Error> {
    if body.size_hint().lower() > BODY_MAX {
        return Ok(false);
    }
    let mut taken = 0;
    while let Some(frame) = body.frame().await {
        taken += frame?.data_ref().map_or(0, |data| data.len() as u64);
        if taken > BODY_MAX {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
