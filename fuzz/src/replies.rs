//! What a VMM answers, or whoever speaks in its place; and what a client of the control socket asks.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use stead::control::{Reply, Request};
use stead::host::linux::conversation::{REPLY_MAX, http, qmp_command, qmp_state};
use stead::host::{VmmCommand, VmmError};
use stead::vmm::{firecracker as fc, qemu};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const BOUND: Duration = Duration::from_secs(1);

/// The longest text that an error about an answer may have, in bytes: it goes to a log and to a person.
const ERROR_MAX: usize = 2_000;

fn check_error(error: &VmmError) {
    let text = error.to_string();
    assert!(text.len() <= ERROR_MAX, "{} bytes: {text:.200}", text.len());
}

/// A choice; then a status and a body, or all that comes over the connection.
pub fn firecracker(data: &[u8]) {
    let Some((choice, bytes)) = super::split_choice(data) else { return };
    match choice % 3 {
        0 => {
            let [high, low, body @ ..] = bytes else { return };
            answered(u16::from_be_bytes([*high, *low]), body);
        }
        1 => {
            let request = match choice / 3 % 2 {
                0 => fc::QUERY,
                _ => fc::request(VmmCommand::Pause),
            };
            match exchange(bytes, request) {
                Ok((status, body)) => {
                    assert!((100..1000).contains(&status) && body.len() <= REPLY_MAX);
                    answered(status, &body);
                }
                Err(error) => check_error(&error),
            }
        }
        _ => {
            let text = String::from_utf8_lossy(bytes);
            if let Some(version) = fc::read_version(&text) {
                assert!(text.contains(&version));
                assert!(!version.contains([' ', '\t', '\n']));
                let _ = stead::vmm::advisories::of(stead::spec::VmmKind::Firecracker, &version);
            }
        }
    }
}

/// A reply has one meaning: done, busy, refused or nonsense.
fn answered(status: u16, body: &[u8]) {
    let (state, done) = (fc::read_state(status, body), fc::read_done(status, body));
    match (&state, &done) {
        (Ok(_) | Err(VmmError::Nonsense(_)), Ok(())) => assert!((200..300).contains(&status)),
        (Err(VmmError::Busy), Err(VmmError::Busy)) => assert_eq!(status, 503),
        (Err(VmmError::Refused(one)), Err(VmmError::Refused(other))) => assert_eq!(one, other),
        other => panic!("{status}: {other:?}"),
    }
    state.err().iter().chain(done.err().iter()).for_each(check_error);
}

fn exchange(bytes: &[u8], request: fc::Request) -> Result<(u16, Vec<u8>), VmmError> {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    }
    let wire = Wire { bytes: bytes.to_vec(), at: 0, asked: false, waiting: None };
    RUNTIME.with(|runtime| runtime.block_on(http(wire, request)))
}

/// The other end of a connection: it answers once it was asked, in pieces, and hangs up.
struct Wire {
    bytes: Vec<u8>,
    at: usize,
    asked: bool,
    waiting: Option<Waker>,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.asked {
            self.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        // Pieces of odd lengths, so that what is split is put together.
        let piece = (self.bytes.len() / 3 + 1).min(buffer.remaining()).min(self.bytes.len() - self.at);
        let end = self.at + piece;
        buffer.put_slice(&self.bytes[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.asked = true;
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What is said to a VMM.
#[derive(Default, Clone)]
struct Said(Rc<RefCell<Vec<u8>>>);

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A choice of what is asked, and all that comes over the connection.
pub fn qmp(data: &[u8]) {
    let Some((choice, bytes)) = super::split_choice(data) else { return };
    let said = Said::default();
    let (asked, result) = match choice % 5 {
        0 => ("query-status", qmp_state(bytes, said.clone(), BOUND).map(|_| ())),
        1 => ("system_powerdown", qmp_command(bytes, said.clone(), BOUND, VmmCommand::Shutdown)),
        2 => ("stop", qmp_command(bytes, said.clone(), BOUND, VmmCommand::Pause)),
        3 => ("cont", qmp_command(bytes, said.clone(), BOUND, VmmCommand::Resume)),
        _ => {
            let text = String::from_utf8_lossy(bytes);
            if let Some(version) = qemu::read_version(&text) {
                assert!(text.contains(&version));
                let _ = stead::vmm::advisories::of(stead::spec::VmmKind::Qemu, &version);
            }
            return;
        }
    };
    let said = String::from_utf8(said.0.take()).unwrap();
    let commands: Vec<&str> = said.lines().collect();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    match commands.as_slice() {
        // Who does not greet is told nothing.
        [] => assert!(result.is_err()),
        [first] => assert!(result.is_err() && first.contains("qmp_capabilities"), "{said}"),
        [first, second] => assert!(first.contains("qmp_capabilities") && second.contains(asked), "{said}"),
        more => panic!("{more:?}"),
    }
    match result {
        Ok(()) => assert!(commands.len() == 2 && lines >= 3, "{said}"),
        Err(error) => {
            assert!(!matches!(error, VmmError::TimedOut(_) | VmmError::NotListening | VmmError::Stranger(_)));
            check_error(&error);
        }
    }
}

/// A line that is a request, or a reply, or neither: what is understood is written in the same way again.
pub fn control(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let line = serde_json::to_vec(&request).unwrap();
        assert!(!line.contains(&b'\n'));
        assert_eq!(serde_json::from_slice::<Request>(&line).unwrap(), request);
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(data) {
        let line = serde_json::to_vec(&reply).unwrap();
        assert!(!line.contains(&b'\n'));
        assert_eq!(serde_json::from_slice::<Reply>(&line).unwrap(), reply);
    }
}
