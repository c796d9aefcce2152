//! What is said over a connection to a VMM: one HTTP request and its reply with Firecracker, one QMP conversation with
//! QEMU. It needs no socket, only bytes: open to whoever answers with any.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use qapi::{ExecuteError, Qmp};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::host::{GuestState, VmmCommand, VmmError};
use crate::vmm::{firecracker, qemu};

/// No reply that is waited for is longer, in bytes.
pub const REPLY_MAX: usize = 1 << 20;

/// One HTTP request and its reply: status and body.
///
/// # Errors
/// When the connection breaks, or the reply is not HTTP or longer than [`REPLY_MAX`].
pub async fn http<S>(stream: S, request: firecracker::Request) -> Result<(u16, Vec<u8>), VmmError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: &dyn std::error::Error| VmmError::Io(error.to_string());
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
    talk: impl FnOnce(&mut Qmp<qapi::Stream<BufReader<R>, W>>) -> Result<T, ExecuteError>,
) -> Result<T, VmmError> {
    let failed = |error: ExecuteError| match error {
        // What it says is its own, and may be long.
        ExecuteError::Qapi(error) => VmmError::Refused(format!("{:.400}", error.to_string())),
        ExecuteError::Io(error) => match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => VmmError::TimedOut(bound),
            io::ErrorKind::InvalidData => VmmError::Nonsense(format!("{:.400}", error.to_string())),
            _ => VmmError::Io(error.to_string()),
        },
    };
    let converse = || -> Result<T, ExecuteError> {
        let mut qmp = Qmp::new(qapi::Stream::new(BufReader::new(reader), writer));
        // The library panics at an end where a greeting should be; QEMU ends so when it exits.
        if qmp.inner_mut().fill_buf()?.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        qmp.handshake()?;
        talk(&mut qmp)
    };
    converse().map_err(failed)
}
