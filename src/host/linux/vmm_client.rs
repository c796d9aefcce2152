//! Talking to a VMM: HTTP with Firecracker, QMP with QEMU. What is said and what a reply means is in [`crate::vmm`].

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::conversation::{self, REPLY_MAX};
use super::io_thread::IoThread;
use super::peer::{self, Connected};
use crate::host::{GuestState, ProcessHandle, SocketPeer, VmmCommand, VmmError};
use crate::spec::VmmKind;
use crate::vmm::firecracker;

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
            let (reader, writer) = qmp_connection(socket, peer, bound)?;
            conversation::qmp_state(reader, writer, bound)
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
        VmmKind::Qemu => {
            let (reader, writer) = qmp_connection(socket, peer, bound)?;
            conversation::qmp_command(reader, writer, bound, command)
        }
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
    let exchange = async move {
        let stream = tokio::net::UnixStream::from_std(stream).map_err(|error| VmmError::Io(error.to_string()))?;
        conversation::http(stream, request).await
    };
    match io.run(bound, exchange) {
        Ok(reply) => reply,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(VmmError::TimedOut(bound)),
        Err(error) => Err(VmmError::Io(error.to_string())),
    }
}

/// A connection to QEMU that no conversation outlives: what it says and what it is told.
fn qmp_connection(socket: &Path, vmm: &ProcessHandle, bound: Duration) -> Result<(Bounded, Bounded), VmmError> {
    let stream = connect(socket, vmm)?;
    let deadline = Instant::now() + bound;
    let open = || -> io::Result<(Bounded, Bounded)> {
        stream.set_nonblocking(false)?;
        let end = || Ok(Bounded { stream: stream.try_clone()?, deadline, read: 0 });
        end().and_then(|reader| Ok((reader, end()?)))
    };
    open().map_err(|error| VmmError::Io(error.to_string()))
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
