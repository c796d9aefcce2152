//! Talking to a VMM: HTTP with Firecracker, QMP with QEMU. What is said and what a reply means is in [`crate::vmm`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use qapi::{ExecuteError, Qmp};

use super::io_thread::IoThread;
use super::peer::{self, Connected};
use crate::host::{GuestState, ProcessHandle, SocketPeer, VmmCommand, VmmError};
use crate::spec::VmmKind;
use crate::vmm::{firecracker, qemu};

/// No reply that is waited for is longer.
const REPLY_MAX: usize = 1 << 20;

/// Asks what the guest is doing.
pub(super) fn query(
    io: &IoThread,
    vmm: VmmKind,
    socket: &Path,
    peer: &ProcessHandle,
    bound: Duration,
) -> Result<GuestState, VmmError> {
    match vmm {
        VmmKind::Firecracker => {
            let (status, body) = http(io, socket, peer, firecracker::QUERY, bound)?;
            firecracker::read_state(status, &body)
        }
        VmmKind::Qemu => {
            qmp(socket, peer, bound, |qmp| Ok(qemu::read_state(qmp.execute(&qapi::qmp::query_status {})?.status)))
        }
    }
}

/// Asks it to do something.
pub(super) fn command(
    io: &IoThread,
    vmm: VmmKind,
    socket: &Path,
    peer: &ProcessHandle,
    command: VmmCommand,
    bound: Duration,
) -> Result<(), VmmError> {
    match vmm {
        VmmKind::Firecracker => {
            let (status, body) = http(io, socket, peer, firecracker::request(command), bound)?;
            firecracker::read_done(status, &body)
        }
        VmmKind::Qemu => qmp(socket, peer, bound, |qmp| {
            match command {
                VmmCommand::Shutdown => qmp.execute(&qapi::qmp::system_powerdown {})?,
                VmmCommand::Pause => qmp.execute(&qapi::qmp::stop {})?,
                VmmCommand::Resume => qmp.execute(&qapi::qmp::cont {})?,
            };
            Ok(())
        }),
    }
}

/// A connection to the VMM itself: whoever else listens at this path is told nothing.
fn connect(socket: &Path, vmm: &ProcessHandle) -> Result<UnixStream, VmmError> {
    let fd: OwnedFd = match peer::connect(socket) {
        Connected::To(fd) => fd,
        Connected::NoSocket | Connected::Refused => return Err(VmmError::NotListening),
        Connected::Full => return Err(VmmError::Busy),
        Connected::Failed(error) => return Err(VmmError::Io(error.to_string())),
    };
    match peer::peer_of(socket, &fd) {
        SocketPeer::Listener(listener) if peer::is_same(&listener, vmm) => Ok(UnixStream::from(fd)),
        SocketPeer::Listener(listener) => Err(VmmError::Stranger(listener.identity.pid)),
        SocketPeer::NoSocket | SocketPeer::NobodyListens => Err(VmmError::NotListening),
        SocketPeer::Unknown(why) => Err(VmmError::Io(why)),
    }
}

fn http(
    io: &IoThread,
    socket: &Path,
    vmm: &ProcessHandle,
    request: firecracker::Request,
    bound: Duration,
) -> Result<(u16, Vec<u8>), VmmError> {
    let stream = connect(socket, vmm)?;
    match io.run(bound, exchange(stream, request)) {
        Ok(reply) => reply,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(VmmError::TimedOut(bound)),
        Err(error) => Err(VmmError::Io(error.to_string())),
    }
}

/// One request and its reply.
async fn exchange(stream: UnixStream, request: firecracker::Request) -> Result<(u16, Vec<u8>), VmmError> {
    let failed = |error: &dyn std::error::Error| VmmError::Io(error.to_string());
    let stream = tokio::net::UnixStream::from_std(stream).map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    // Ends with `sender`, and with it the connection.
    let driver = tokio::spawn(connection);
    let message = hyper::Request::builder()
        .method(request.method)
        .uri(request.path)
        .header("host", "localhost")
        .header("accept", "application/json")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(request.body.as_bytes())))
        .map_err(|error| failed(&error))?;
    let reply = sender
        .send_request(message)
        .await
        .map_err(|error| if error.is_parse() { VmmError::Nonsense(error.to_string()) } else { failed(&error) })?;
    let status = reply.status().as_u16();
    // Refused for want of room, it closes at once; there is nothing more to read.
    let body = Limited::new(reply.into_body(), REPLY_MAX).collect().await;
    driver.abort();
    match body {
        Ok(body) => Ok((status, body.to_bytes().to_vec())),
        Err(_) if status == 503 => Ok((status, Vec::new())),
        Err(error) => Err(VmmError::Io(error.to_string())),
    }
}

type QmpClient = Qmp<qapi::Stream<BufReader<Bounded>, Bounded>>;

/// One conversation: greeting, capabilities, what `talk` says.
fn qmp<T>(
    socket: &Path,
    vmm: &ProcessHandle,
    bound: Duration,
    talk: impl FnOnce(&mut QmpClient) -> Result<T, ExecuteError>,
) -> Result<T, VmmError> {
    let stream = connect(socket, vmm)?;
    let deadline = Instant::now() + bound;
    let failed = |error: ExecuteError| match error {
        ExecuteError::Qapi(error) => VmmError::Refused(error.to_string()),
        ExecuteError::Io(error) => match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => VmmError::TimedOut(bound),
            io::ErrorKind::InvalidData => VmmError::Nonsense(error.to_string()),
            _ => VmmError::Io(error.to_string()),
        },
    };
    let converse = || -> Result<T, ExecuteError> {
        stream.set_nonblocking(false)?;
        let reader = BufReader::new(Bounded { stream: stream.try_clone()?, deadline, read: 0 });
        let writer = Bounded { stream: stream.try_clone()?, deadline, read: 0 };
        let mut qmp = Qmp::new(qapi::Stream::new(reader, writer));
        // The library panics at an end where a greeting should be; QEMU ends so when it exits.
        if qmp.inner_mut().fill_buf()?.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        qmp.handshake()?;
        talk(&mut qmp)
    };
    converse().map_err(failed)
}

/// A stream whose every read and write together end at one deadline, and that gives no more than a bounded reply.
struct Bounded {
    stream: UnixStream,
    deadline: Instant,
    read: usize,
}

impl Bounded {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // Zero would mean "for ever" to the socket.
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read > REPLY_MAX {
            return Err(super::error(io::ErrorKind::InvalidData, "the reply has no end"));
        }
        self.stream.set_read_timeout(self.left()?)?;
        let count = self.stream.read(buffer)?;
        self.read += count;
        Ok(count)
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
