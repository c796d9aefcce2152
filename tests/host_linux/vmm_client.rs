//! What a VMM may answer instead of an answer: nothing, too little, too much, too slowly, nonsense. The test plays it: the
//! proven peer is the test's own process.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::thread::JoinHandleExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::{SIGUSR1, pthread_kill};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use stead::host::{GuestState, HostOps, HostView, ProcessHandle, VmmCommand, VmmError};
use stead::spec::VmmKind;

use crate::bed::{API, BOUND, host};

const BOTH: [VmmKind; 2] = [VmmKind::Firecracker, VmmKind::Qemu];
/// The bound where it is reached.
const SHORT: Duration = Duration::from_millis(200);
const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 8}, \"package\": \"\"}, \
     \"capabilities\": []}}\n";

/// One side of a connection, played by the test.
struct Peer {
    host: std::sync::Arc<stead::host::linux::LinuxHost>,
    myself: ProcessHandle,
    socket: PathBuf,
    listener: UnixListener,
    _folder: tempfile::TempDir,
}

impl Peer {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("sth").tempdir_in("/tmp").unwrap();
        let socket = folder.path().join("sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let host = host();
        let myself = host.open_process(i32::try_from(std::process::id()).unwrap()).unwrap().unwrap();
        Self { host, myself, socket, listener, _folder: folder }
    }

    /// What is made of a VMM that does `play` with the one connection it gets, and how long it took.
    fn query(
        &self,
        kind: VmmKind,
        bound: Duration,
        play: impl FnOnce(UnixStream) + Send,
    ) -> (Result<GuestState, VmmError>, Duration) {
        thread::scope(|scope| {
            let vmm = scope.spawn(|| play(self.listener.accept().unwrap().0));
            let start = Instant::now();
            let answer = self.host.query_vmm(kind, &self.socket, &self.myself, bound);
            let took = start.elapsed();
            vmm.join().unwrap();
            (answer, took)
        })
    }
}

/// Reads what was asked, until it is over.
fn hear(stream: &mut UnixStream, end: &str) -> String {
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let mut heard = String::new();
    let mut byte = [0];
    while !heard.ends_with(end) && stream.read(&mut byte).unwrap() == 1 {
        heard.push(byte[0].into());
    }
    heard
}

/// Says `text` again and again, until nobody listens or there was time enough; how often it was heard.
fn repeat(mut stream: &UnixStream, text: &[u8], pause: Duration) -> usize {
    let start = Instant::now();
    stream.set_write_timeout(Some(BOUND)).unwrap();
    let mut count = 0;
    while start.elapsed() < BOUND && stream.write_all(text).is_ok() {
        count += 1;
        thread::sleep(pause);
    }
    count
}

#[track_caller]
fn timed_out((answer, took): (Result<GuestState, VmmError>, Duration)) {
    assert_eq!(answer, Err(VmmError::TimedOut(SHORT)));
    assert!(took >= SHORT && took < SHORT + Duration::from_secs(1), "{took:?}");
}

#[test]
fn an_answer_is_taken_at_its_end_though_the_connection_stays() {
    let peer = Peer::new();
    let (answer, _) = peer.query(VmmKind::Firecracker, API, |mut stream| {
        assert_eq!(hear(&mut stream, "\r\n\r\n").lines().next(), Some("GET / HTTP/1.1"));
        stream.write_all(b"HTTP/1.1 200 \r\nConnection: keep-alive\r\nContent-Length: 18\r\n\r\n").unwrap();
        stream.write_all(b"{\"state\":\"Paused\"}").unwrap();
        assert_eq!(hear(&mut stream, "\0"), "", "it is asked once, and the connection is given up");
    });
    assert_eq!(answer, Ok(GuestState::Paused));
}

#[test]
fn a_command_is_carried_out_when_the_answer_says_so() {
    let peer = Peer::new();
    let answers = thread::scope(|scope| {
        scope.spawn(|| {
            for reply in
                ["HTTP/1.1 204 \r\n\r\n", "HTTP/1.1 400 \r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}"]
            {
                let (mut stream, _) = peer.listener.accept().unwrap();
                assert!(hear(&mut stream, "}").starts_with("PATCH /vm HTTP/1.1\r\n"));
                stream.write_all(reply.as_bytes()).unwrap();
            }
        });
        let pause = || peer.host.command_vmm(VmmKind::Firecracker, &peer.socket, &peer.myself, VmmCommand::Pause, API);
        [pause(), pause()]
    });
    assert_eq!(answers, [Ok(()), Err(VmmError::Refused("no (HTTP status 400)".to_owned()))]);
}

#[test]
fn where_pidfds_have_no_inodes_of_their_own_the_peer_is_proven_by_what_proc_says() {
    // As before Linux 6.9.
    let mut peer = Peer::new();
    peer.myself.identity.pidfd_inode = None;
    let (answer, _) = peer.query(VmmKind::Firecracker, API, |mut stream| {
        hear(&mut stream, "\r\n\r\n");
        stream.write_all(b"HTTP/1.1 200 \r\nContent-Length: 19\r\n\r\n{\"state\":\"Running\"}").unwrap();
    });
    assert_eq!(answer, Ok(GuestState::Running));
}

#[test]
fn a_peer_that_says_nothing_is_given_up_at_the_bound() {
    for kind in BOTH {
        timed_out(Peer::new().query(kind, SHORT, |mut stream| drop(hear(&mut stream, "\0"))));
    }
}

#[test]
fn a_peer_that_drips_is_given_up_at_the_bound() {
    // Each byte comes long before the bound, and all of them long after it.
    for pause in [Duration::from_millis(20), Duration::from_micros(100)] {
        timed_out(Peer::new().query(VmmKind::Firecracker, SHORT, |mut stream| {
            stream.write_all(b"HTTP/1.1 200 \r\nContent-Length: 1000000\r\n\r\n").unwrap();
            assert!(repeat(&stream, b" ", pause) > 1);
        }));
        timed_out(Peer::new().query(VmmKind::Firecracker, SHORT, |mut stream| {
            stream.write_all(b"HTTP/1.1 200 \r\nServer: ").unwrap();
            assert!(repeat(&stream, b"x", pause.max(Duration::from_millis(1))) > 1);
        }));
        timed_out(Peer::new().query(VmmKind::Qemu, SHORT, |stream| assert!(repeat(&stream, b" ", pause) > 1)));
    }
}

#[test]
fn a_peer_that_hangs_up_is_no_answer_and_no_wait() {
    let hangs_up = |kind, said: &str| {
        let (answer, took) = Peer::new().query(kind, BOUND, |mut stream| stream.write_all(said.as_bytes()).unwrap());
        assert!(took < BOUND / 2, "{took:?}");
        answer
    };
    for said in ["", "H", "HTTP/1.1 200 \r\n", "HTTP/1.1 200 \r\nContent-Length: 18\r\n\r\n{\"state\":\"Pau"] {
        let answer = hangs_up(VmmKind::Firecracker, said);
        assert!(matches!(answer, Err(VmmError::Io(_))), "{said:?}: {answer:?}");
    }
    for said in ["", GREETING] {
        let answer = hangs_up(VmmKind::Qemu, said);
        assert!(matches!(answer, Err(VmmError::Io(_))), "{said:?}: {answer:?}");
    }
    let answer = hangs_up(VmmKind::Qemu, "{\"QMP\":");
    assert!(matches!(answer, Err(VmmError::Nonsense(_) | VmmError::Io(_))), "{answer:?}");
}

#[test]
fn a_peer_that_hangs_up_one_half_is_no_answer_and_no_wait() {
    for kind in BOTH {
        let (answer, took) = Peer::new().query(kind, BOUND, |mut stream| {
            stream.shutdown(Shutdown::Write).unwrap();
            hear(&mut stream, "\0");
        });
        assert!(matches!(answer, Err(VmmError::Io(_))), "{kind}: {answer:?}");
        assert!(took < BOUND / 2, "{took:?}");
    }
}

#[test]
fn a_peer_that_refuses_before_it_is_asked_is_busy() {
    // Firecracker does so when all its connections are taken. Which of the two is first is up to chance.
    for _ in 0..100 {
        let (answer, _) = Peer::new().query(VmmKind::Firecracker, API, |mut stream| {
            stream.write_all(b"HTTP/1.1 503\r\nConnection: close\r\nContent-Length: 40\r\n\r\n{ \"error\"").unwrap();
        });
        assert_eq!(answer, Err(VmmError::Busy));
    }
}

#[test]
fn garbage_makes_no_sense_at_once() {
    for kind in BOTH {
        for said in
            ["\0\0\0\0\0\0\0\0\n", "SSH-2.0-OpenSSH_9.9\r\n", "HTTP/1.1 OK 200\r\n\r\n", "HTTP/1.1 204 \r\nx\r\n\r\n"]
        {
            let (answer, took) = Peer::new().query(kind, BOUND, |mut stream| {
                stream.write_all(said.as_bytes()).unwrap();
                hear(&mut stream, "\0");
            });
            assert!(matches!(answer, Err(VmmError::Nonsense(_))), "{kind} {said:?}: {answer:?}");
            assert!(took < BOUND / 2, "{took:?}");
        }
    }
}

#[test]
fn an_answer_without_end_makes_no_sense_and_is_not_kept() {
    let endless = |kind, first: &str, piece: &[u8]| {
        let (answer, took) = Peer::new().query(kind, BOUND, |mut stream| {
            stream.write_all(first.as_bytes()).unwrap();
            let heard = repeat(&stream, piece, Duration::ZERO) * piece.len();
            assert!(heard < 4 << 20, "{heard} bytes");
        });
        assert!(matches!(answer, Err(VmmError::Nonsense(_))), "{kind} {first:?}: {answer:?}");
        assert!(took < BOUND / 2, "{took:?}");
    };
    let piece = [b' '; 4096];
    endless(VmmKind::Qemu, "", &piece);
    endless(
        VmmKind::Qemu,
        GREETING,
        &b"{\"event\":\"STOP\",\"timestamp\":{\"seconds\":1,\"microseconds\":1}}\n".repeat(64),
    );
    endless(VmmKind::Firecracker, "HTTP/1.1 200 \r\nServer: ", &piece);
    endless(VmmKind::Firecracker, "HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n", &piece);
    endless(VmmKind::Firecracker, "HTTP/1.1 200 \r\n\r\n", &piece);
    endless(VmmKind::Firecracker, "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n", &piece);
}

#[test]
fn signals_neither_end_a_question_nor_give_it_more_time() {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, and no other test uses this signal.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    for kind in BOTH {
        let peer = Peer::new();
        let (host, socket, myself) = (peer.host.clone(), peer.socket.clone(), peer.myself.clone());
        let asker = thread::spawn(move || {
            let start = Instant::now();
            let answer = host.query_vmm(kind, &socket, &myself, SHORT);
            (answer, start.elapsed())
        });
        let mut signals = 0;
        while !asker.is_finished() && signals < 10_000 {
            // SAFETY: the thread was not joined yet, so this is its own id.
            assert_eq!(unsafe { pthread_kill(asker.as_pthread_t(), SIGUSR1) }, 0);
            signals += 1;
            thread::sleep(Duration::from_millis(2));
        }
        timed_out(asker.join().unwrap());
        assert!(signals > 10, "{signals}");
    }
}
