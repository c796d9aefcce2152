//! Talking to a VMM: HTTP with Firecracker, QMP with QEMU. What is said and what a reply means is in [`crate::vmm`].

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::conversation::{self, REPLY_MAX};
use super::peer::{self, Connected};
use crate::host::{GuestState, ProcessHandle, SocketPeer, VmmCommand, VmmError};
use crate::spec::VmmKind;
use crate::vmm::firecracker;

/// Asks what the guest is doing.
pub(super) fn query(
    vmm: VmmKind,
    socket: &Path,
    peer: &ProcessHandle,
    bound: Duration,
) -> Result<GuestState, VmmError> {
    let stream = connect(socket, peer)?;
    let (reader, writer) = ends(&stream, bound);
    match vmm {
        VmmKind::Firecracker => {
            let (status, body) = conversation::http(reader, writer, bound, &firecracker::QUERY)?;
            firecracker::read_state(status, &body)
        }
        VmmKind::Qemu => conversation::qmp_state(reader, writer, bound),
    }
}

/// Asks it to do something.
pub(super) fn command(
    vmm: VmmKind,
    socket: &Path,
    peer: &ProcessHandle,
    command: VmmCommand,
    bound: Duration,
) -> Result<(), VmmError> {
    let stream = connect(socket, peer)?;
    let (reader, writer) = ends(&stream, bound);
    match vmm {
        VmmKind::Firecracker => {
            let (status, body) = conversation::http(reader, writer, bound, &firecracker::request(command))?;
            firecracker::read_done(status, &body)
        }
        VmmKind::Qemu => conversation::qmp_command(reader, writer, bound, command),
    }
}

/// A connection to the VMM itself, which does not block: whoever else listens at this path is told nothing.
fn connect(socket: &Path, vmm: &ProcessHandle) -> Result<UnixStream, VmmError> {
    // Proven by this very connection.
    if let Some(fd) = vmm.line.as_ref().and_then(|line| line.take(socket)) {
        return Ok(UnixStream::from(fd));
    }
    let fd: OwnedFd = match peer::connect(socket) {
        Connected::To(fd) => fd,
        Connected::NoSocket | Connected::Refused => return Err(VmmError::NotListening),
        Connected::Full => return Err(VmmError::Busy),
        Connected::Failed(error) => return Err(VmmError::Io(error.to_string())),
    };
    if peer::is_at_end_of(&fd, vmm) {
        return Ok(UnixStream::from(fd));
    }
    match peer::peer_of(socket, &fd) {
        SocketPeer::Listener(listener) if peer::is_same(&listener, vmm) => Ok(UnixStream::from(fd)),
        SocketPeer::Listener(listener) => Err(VmmError::Stranger(listener.identity.pid)),
        SocketPeer::NoSocket | SocketPeer::NobodyListens => Err(VmmError::NotListening),
        SocketPeer::Unknown(why) => Err(VmmError::Io(why)),
    }
}

/// Both ends of one conversation, which is over when the bound is.
fn ends(stream: &UnixStream, bound: Duration) -> (Bounded<'_>, Bounded<'_>) {
    let deadline = Instant::now() + bound;
    let end = || Bounded { stream, deadline, read: 0 };
    (end(), end())
}

/// A stream that does not block, whose every read and write together end at one deadline, and that gives no more than a
/// bounded reply.
struct Bounded<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
    read: usize,
}

impl Bounded<'_> {
    /// How long there is. Asked each time, and not only when nothing comes: whoever sends byte after byte has no longer.
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    /// Waits until something can be done with the stream.
    fn wait(&self, what: PollFlags) -> io::Result<()> {
        loop {
            let timeout = Timespec::try_from(self.left()?).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(self.stream, what)], Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read > REPLY_MAX {
            return Err(super::error(io::ErrorKind::InvalidData, "the reply has no end"));
        }
        // Waits first: no answer is there before it is waited for.
        self.wait(PollFlags::IN)?;
        let count = self.stream.read(buffer)?;
        self.read += count;
        Ok(count)
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Also when it would not have to wait: what was given up is not said after all when a buffer is dropped.
        self.left()?;
        loop {
            // Tries first: there is room for a question.
            match self.stream.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::OUT)?,
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
