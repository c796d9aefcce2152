//! What a VMM answers, or whoever speaks in its place; and what a client of the control socket asks.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use stead::control::{Reply, Request};
use stead::host::linux::conversation::{REPLY_MAX, http, qmp_command, qmp_state};
use stead::host::{VmmCommand, VmmError};
use stead::vmm::{firecracker as fc, qemu};

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
            let (reply, pieces) =
                (exchange(bytes, &request, bytes.len()), exchange(bytes, &request, bytes.len() / 3 + 1));
            assert_eq!(reply, pieces, "what is split is put together");
            match reply {
                Ok((status, body)) => {
                    assert!((200..1000).contains(&status) && body.len() <= REPLY_MAX);
                    assert!(
                        body.is_empty() || bytes.windows(body.len()).any(|window| window == body),
                        "nobody said so"
                    );
                    answered(status, &body);
                }
                Err(error) => {
                    assert!(matches!(error, VmmError::Nonsense(_) | VmmError::Io(_)), "{error:?}");
                    check_error(&error);
                }
            }
        }
        _ => {
            let text = String::from_utf8_lossy(bytes);
            if let Some(version) = fc::read_version(&text) {
                assert!(text.contains(&version));
                assert!(!version.contains([' ', '\t', '\n']));
                let _ = holes(stead::spec::VmmKind::Firecracker, &version);
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

/// Asks whoever says `bytes`, so many at a time, and then hangs up. It is asked once, in full.
fn exchange(bytes: &[u8], request: &fc::Request, piece: usize) -> Result<(u16, Vec<u8>), VmmError> {
    let said = Said::default();
    let reply = http(Pieces { bytes, piece }, said.clone(), BOUND, request);
    let said = String::from_utf8(said.0.take()).unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("{} {} HTTP/1.1\r\n", request.method, request.path)) && body == request.body);
    reply
}

/// Bytes that come in pieces.
struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
}

impl io::Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.piece.min(buffer.len());
        self.bytes.read(&mut buffer[..count])
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
                let _ = holes(stead::spec::VmmKind::Qemu, &version);
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

/// Whatever of the VMM is in use.
fn holes(vmm: stead::spec::VmmKind, version: &str) -> Vec<String> {
    use stead::vmm::advisories::{Feature, with_features};
    with_features(vmm, version, &[Feature::Pci, Feature::Jailer])
}
