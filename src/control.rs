//! The socket of a running `stead run`, RUN/ID/stead.sock, through which acting commands ask it.
//!
//! One JSON object a line, one reply a line. Only the user that runs stead, and root, are answered. A client that closes its
//! side before the answer has given up: nobody waits on its behalf any more.

use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::names::{Layout, VmName};

/// The longest request or reply in bytes; an adopted folder's path is the longest thing in one.
const LINE_MAX: u64 = 64 << 10;
/// Connections served at once; a further one waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may take to send its request, or to take its reply.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait when the kernel has no descriptor left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What a running stead can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase")]
pub enum Request {
    /// Whether it is there, and who it is.
    Ping,
    /// Restart a VM.
    Restart {
        /// The VM.
        name: VmName,
    },
    /// Stop a VM that no manifest declares, and forget it.
    Delete {
        /// The VM.
        name: VmName,
    },
    /// Let the deletions through that the plan of this digest shows.
    Approve {
        /// The digest.
        digest: String,
    },
    /// Free the kernel objects that nothing accounts for.
    Gc,
    /// Follow a git source now, and tell how that went.
    Sync {
        /// Its name.
        source: String,
    },
    /// Put an earlier commit of a git source in force.
    RollBack {
        /// Its name.
        source: String,
        /// How the commit's id begins; the one before, if none is named.
        commit: Option<String>,
        /// Follow the repository again instead.
        release: bool,
    },
    /// Take over the VMs that another manager left in this folder.
    Adopt {
        /// The folder, absolute.
        dir: PathBuf,
    },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "camelCase")]
pub enum Reply {
    /// It is there.
    Pong {
        /// Its version.
        version: String,
        /// Its pid.
        pid: u32,
    },
    /// Recorded durably; it will be done.
    Accepted {
        /// What will happen, for people.
        message: String,
    },
    /// The orphans there were, and what became of each.
    Collected {
        /// One for each, for people.
        lines: Vec<String>,
        /// How many could not be freed.
        unfreed: usize,
    },
    /// It will not be done.
    Refused {
        /// Why.
        message: String,
        /// What to do instead.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// Why a running stead gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It listens and does not answer in time.
    #[error("the running stead did not answer within {0:?}")]
    TimedOut(Duration),
    /// Somebody else listens there.
    #[error("a process of user {uid} listens on {}", socket.display())]
    Stranger {
        /// Whose it is.
        uid: u32,
        /// The socket.
        socket: PathBuf,
    },
    /// Its answer was not one.
    #[error("the running stead's answer makes no sense")]
    Nonsense(#[source] serde_json::Error),
    /// The connection failed.
    #[error("could not talk through {}", socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Asks the running stead of this state; `None` when none runs. Takes at most about `bound` for each of connecting,
/// sending and receiving.
pub fn ask(layout: &Layout, request: &Request, bound: Duration) -> Result<Option<Reply>, ControlError> {
    let path = layout.control_socket();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ControlError::TimedOut(bound),
        _ => ControlError::Io { socket: path.clone(), source },
    };
    let mut stream = match connect_within(&path, bound) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let peer = nix::sys::socket::getsockopt(&stream, sockopt::PeerCredentials).map_err(|e| failed(e.into()))?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        return Err(ControlError::Stranger { uid: peer.uid(), socket: path });
    }
    let mut line = serde_json::to_vec(request).map_err(ControlError::Nonsense)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut answer).map_err(failed)?;
    if answer.is_empty() {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_str(&answer).map(Some).map_err(ControlError::Nonsense)
}

/// A connection on which connecting, too, is bounded: with a full queue, connect(2) waits as long as `SO_SNDTIMEO` says.
fn connect_within(path: &Path, bound: Duration) -> io::Result<UnixStream> {
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let seconds = i64::try_from(bound.as_secs()).unwrap_or(i64::MAX);
    let time = TimeVal::new(seconds, i64::from(bound.subsec_micros()));
    setsockopt(&fd, sockopt::SendTimeout, &time)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &time)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// Carries out what clients ask.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. [`Reply::Accepted`] means that it is recorded durably.
    fn handle(&self, request: Request) -> impl Future<Output = Reply> + Send;
}

/// Listens on the control socket, with mode 0600. The caller holds the state's lock, so whatever socket is there was left
/// by a stead that has ended, and is replaced.
pub fn bind(layout: &Layout) -> io::Result<UnixListener> {
    let path = layout.control_socket();
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Between bind and chmod the folder's mode of 0700 protects it.
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves clients until it is dropped. No client can delay another, nor keep more than one connection's worth of memory.
pub async fn serve<H: Handler>(listener: UnixListener, handler: Arc<H>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Closed semaphores give an error; nobody closes this one.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    if let Err(error) = serve_one(stream, &*handler).await {
                        tracing::debug!(%error, "a client of the control socket went away");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection on the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_one<H: Handler>(stream: tokio::net::UnixStream, handler: &H) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = tokio::io::BufReader::new(read.take(LINE_MAX));
    let reply = if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        refused(format!("user {uid} may not ask this stead; ask as the user that runs it, or as root"))
    } else {
        timeout(CLIENT_PATIENCE, reader.read_until(b'\n', &mut line)).await??;
        match (line.last(), serde_json::from_slice(&line)) {
            (None, _) => return Ok(()),
            (Some(b'\n'), Ok(request)) => tokio::select! {
                biased;
                reply = handler.handle(request) => reply,
                // Else clients that were interrupted would hold every connection for as long as what they asked for takes.
                () = has_gone(&mut reader) => return Ok(()),
            },
            (Some(b'\n'), Err(error)) => refused(format!(
                "stead {} does not understand this request: {error}; let both be of one version",
                env!("CARGO_PKG_VERSION")
            )),
            (Some(_), _) => refused(format!("a request is one line of at most {LINE_MAX} bytes")),
        }
    };
    let mut answer = serde_json::to_vec(&reply)?;
    answer.push(b'\n');
    timeout(CLIENT_PATIENCE, write.write_all(&answer)).await??;
    Ok(())
}

/// Comes when the client has closed its side. What else it may send is not read as a request.
async fn has_gone(reader: &mut (impl AsyncBufReadExt + Unpin)) {
    loop {
        match reader.fill_buf().await {
            Ok(more) if !more.is_empty() => {
                let length = more.len();
                reader.consume(length);
            }
            Ok(_) | Err(_) => return,
        }
    }
}

fn refused(message: String) -> Reply {
    Reply::Refused { message, hint: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::StateId;

    const BOUND: Duration = Duration::from_secs(5);

    struct Echo;
    impl Handler for Echo {
        async fn handle(&self, request: Request) -> Reply {
            match request {
                Request::Ping => Reply::Pong { version: "9".into(), pid: 7 },
                other => Reply::Accepted { message: format!("{other:?}") },
            }
        }
    }

    fn layout(folder: &Path) -> Layout {
        let layout = Layout::new(StateId::derive("m", folder), folder.to_owned(), folder).unwrap();
        std::fs::create_dir_all(&layout.run_dir).unwrap();
        layout
    }

    async fn asked(layout: &Layout, request: Request, bound: Duration) -> Result<Option<Reply>, ControlError> {
        let layout = layout.clone();
        tokio::task::spawn_blocking(move || ask(&layout, &request, bound)).await.unwrap()
    }

    /// Sends raw bytes and gives the reply line.
    async fn send(layout: &Layout, bytes: Vec<u8>) -> String {
        let path = layout.control_socket();
        tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(&bytes).unwrap();
            let mut reply = String::new();
            BufReader::new(stream).read_line(&mut reply).unwrap();
            reply
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn a_request_is_answered_and_a_stale_socket_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path());
        assert_eq!(asked(&layout, Request::Ping, BOUND).await.unwrap(), None, "no socket");
        drop(std::os::unix::net::UnixListener::bind(layout.control_socket()).unwrap());
        assert_eq!(asked(&layout, Request::Ping, BOUND).await.unwrap(), None, "a stale socket");

        let listener = bind(&layout).unwrap();
        let mode = std::fs::metadata(layout.control_socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        tokio::spawn(serve(listener, Arc::new(Echo)));
        let pong = asked(&layout, Request::Ping, BOUND).await.unwrap();
        assert_eq!(pong, Some(Reply::Pong { version: "9".into(), pid: 7 }));
        let restart = Request::Restart { name: "web".parse().unwrap() };
        assert!(matches!(asked(&layout, restart, BOUND).await.unwrap(), Some(Reply::Accepted { .. })));
    }

    #[tokio::test]
    async fn nonsense_and_endless_requests_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path());
        tokio::spawn(serve(bind(&layout).unwrap(), Arc::new(Echo)));
        for bytes in [
            b"hello\n".to_vec(),
            b"{\"request\":\"format-disk\"}\n".to_vec(),
            b"{\"request\":\"restart\",\"name\":\"../x\"}\n".to_vec(),
        ] {
            assert!(send(&layout, bytes).await.contains("does not understand"));
        }
        let endless = vec![b'x'; usize::try_from(LINE_MAX).unwrap()];
        assert!(send(&layout, endless).await.contains("one line of at most"));
    }

    #[tokio::test]
    async fn a_silent_client_delays_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path());
        tokio::spawn(serve(bind(&layout).unwrap(), Arc::new(Echo)));
        let _silent: Vec<_> =
            (1..CONNECTIONS_MAX).map(|_| UnixStream::connect(layout.control_socket()).unwrap()).collect();
        assert!(asked(&layout, Request::Ping, BOUND).await.unwrap().is_some());
    }

    /// Takes requests and never answers; tells who waits for it.
    struct Deaf(tokio::sync::watch::Sender<usize>);
    impl Handler for Deaf {
        async fn handle(&self, request: Request) -> Reply {
            struct Waits<'a>(&'a tokio::sync::watch::Sender<usize>);
            impl Drop for Waits<'_> {
                fn drop(&mut self) {
                    self.0.send_modify(|waiting| *waiting -= 1);
                }
            }
            if request == Request::Ping {
                return Reply::Pong { version: "9".into(), pid: 7 };
            }
            self.0.send_modify(|waiting| *waiting += 1);
            let _waits = Waits(&self.0);
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_client_that_gives_up_at_any_point_keeps_no_connection() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path());
        let (waiting_in, mut waiting) = tokio::sync::watch::channel(0);
        tokio::spawn(serve(bind(&layout).unwrap(), Arc::new(Deaf(waiting_in))));
        let line = b"{\"request\":\"gc\"}\n";
        for sent in 0..=line.len() {
            let mut clients = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                let mut client = UnixStream::connect(layout.control_socket()).unwrap();
                client.write_all(&line[..sent]).unwrap();
                clients.push(client);
            }
            if sent == line.len() {
                timeout(BOUND, waiting.wait_for(|waiting| *waiting == CONNECTIONS_MAX)).await.unwrap().unwrap();
            }
            drop(clients);
            let pong = asked(&layout, Request::Ping, BOUND).await;
            assert!(matches!(pong, Ok(Some(Reply::Pong { .. }))), "{sent} bytes of a request were sent: {pong:?}");
            timeout(BOUND, waiting.wait_for(|waiting| *waiting == 0)).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_stead_that_does_not_answer_is_given_up_on() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path());
        let _deaf = bind(&layout).unwrap();
        let answer = asked(&layout, Request::Ping, Duration::from_millis(50)).await;
        assert!(matches!(answer, Err(ControlError::TimedOut(_))), "{answer:?}");
    }
}
