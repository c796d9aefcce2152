//! What is said over a connection to a VMM: one HTTP request and its reply with Firecracker, one QMP conversation with
//! QEMU. It needs no socket, only bytes: open to whoever answers with any.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::time::Duration;

use qapi::{ExecuteError, Qmp};

use super::http;
use crate::host::{GuestState, VmmCommand, VmmError};
use crate::vmm::{firecracker, qemu};

/// No reply that is waited for is longer, in bytes.
pub const REPLY_MAX: usize = 1 << 20;

/// One HTTP request and its reply: status and body. `bound` is how long `reader` and `writer` wait at most, for the error
/// alone.
///
/// # Errors
/// When the connection breaks, or the reply is not HTTP as Firecracker speaks it or longer than [`REPLY_MAX`].
pub fn http(
    reader: impl Read,
    mut writer: impl Write,
    bound: Duration,
    request: &firecracker::Request,
) -> Result<(u16, Vec<u8>), VmmError> {
    let told = writer.write_all(&http::encode(request));
    // Who has no room says so and hangs up before it is asked: that can be read all the same. But who was not told did not
    // do it, whatever else is read.
    let reply = match (told, http::read_reply(reader)) {
        (Err(error), Ok((..400, _)) | Err(_)) => Err(error),
        (_, reply) => reply,
    };
    reply.map_err(|error| failed(&error, bound))
}

/// Asks over QMP what the guest is doing. `bound` is how long `reader` and `writer` wait at most, for the error alone.
///
/// # Errors
/// When the connection breaks, the VMM refuses, or its words are not QMP.
pub fn qmp_state(reader: impl Read, writer: impl Write, bound: Duration) -> Result<GuestState, VmmError> {
    qmp(reader, writer, bound, |qmp| Ok(qemu::read_state(qmp.execute(&qapi::qmp::query_status {})?.status)))
}

/// Asks over QMP to do something.
///
/// # Errors
/// As of [`qmp_state`].
pub fn qmp_command(
    reader: impl Read,
    writer: impl Write,
    bound: Duration,
    command: VmmCommand,
) -> Result<(), VmmError> {
    qmp(reader, writer, bound, |qmp| {
        match command {
            VmmCommand::Shutdown => qmp.execute(&qapi::qmp::system_powerdown {})?,
            VmmCommand::Pause => qmp.execute(&qapi::qmp::stop {})?,
            VmmCommand::Resume => qmp.execute(&qapi::qmp::cont {})?,
        };
        Ok(())
    })
}

/// One conversation: greeting, capabilities, what `talk` says.
fn qmp<R: Read, W: Write, T>(
    reader: R,
    writer: W,
    bound: Duration,
    talk: impl FnOnce(&mut Qmp<qapi::Stream<BufReader<R>, BufWriter<W>>>) -> Result<T, ExecuteError>,
) -> Result<T, VmmError> {
    let converse = || -> Result<T, ExecuteError> {
        // The library writes word by word and flushes at the end of a command.
        let mut qmp = Qmp::new(qapi::Stream::new(BufReader::new(reader), BufWriter::new(writer)));
        // The library panics at an end where a greeting should be; QEMU ends so when it exits.
        if qmp.inner_mut().fill_buf()?.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        qmp.handshake()?;
        talk(&mut qmp)
    };
    converse().map_err(|error| match error {
        // What it says is its own, and may be long.
        ExecuteError::Qapi(error) => VmmError::Refused(format!("{:.400}", error.to_string())),
        ExecuteError::Io(error) => failed(&error, bound),
    })
}

/// What it means that a connection gave this error.
fn failed(error: &io::Error, bound: Duration) -> VmmError {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => VmmError::TimedOut(bound),
        io::ErrorKind::InvalidData => VmmError::Nonsense(format!("{:.400}", error.to_string())),
        _ => VmmError::Io(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The connection of a peer that has hung up.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_was_not_asked_may_have_refused_but_did_nothing() {
        let told = |reply: &str| http(reply.as_bytes(), Closed, Duration::ZERO, &firecracker::QUERY);
        assert_eq!(told("HTTP/1.1 503\r\nContent-Length: 40\r\n\r\n{"), Ok((503, Vec::new())));
        for reply in ["", "HTTP/1.1 204 \r\n\r\n", "HTTP/1.1 503\r\n", "garbage"] {
            assert_eq!(told(reply), Err(VmmError::Io("broken pipe".to_owned())), "{reply}");
        }
    }
}
