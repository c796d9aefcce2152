//! A server of an echo, and clients that behave in all manners.

use super::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Instant;

/// How long anything may take that a test waits for.
const BOUND: Duration = Duration::from_secs(60);

/// Says what it was asked.
struct Echo;
impl Service for Echo {
    async fn answer(&self, request: Request) -> Answer {
        let Parts { method, uri, .. } = &request.head;
        Answer::new(format!("{method} {uri} by {}, too long: {}\n", request.client, request.is_too_long))
    }
}

struct Bed {
    _server: Server,
    folder: tempfile::TempDir,
}

impl Bed {
    fn new(service: impl Service) -> Self {
        Self::with(service, PATIENCE)
    }

    fn with(service: impl Service, patience: Patience) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = bind(&Address::Socket(folder.path().join("http.sock"))).unwrap();
        Self { _server: serve_with(listener, "test", service, patience).unwrap(), folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("http.sock")
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.path()).unwrap();
        client.set_read_timeout(Some(BOUND)).unwrap();
        client
    }

    /// What is answered to these bytes, to the end of the connection.
    fn send(&self, bytes: &[u8]) -> String {
        let mut client = self.client();
        // Who makes no sense may be hung up on before it has said all.
        let _ = client.write_all(bytes);
        rest(&mut client)
    }
}

/// Everything that is still to come.
fn rest(client: &mut impl Read) -> String {
    let mut answer = Vec::new();
    let ended = client.read_to_end(&mut answer);
    if let Err(error) = ended {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_request_is_answered_and_its_connection_closed() {
    let bed = Bed::new(Echo);
    let answer = bed.send(b"GET /x?y HTTP/1.1\r\nHost: here\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("connection: close"), "{answer}");
    let me = format!("by pid {} of user {}", std::process::id(), nix::unistd::geteuid());
    assert!(answer.contains("GET /x?y") && answer.contains(&me), "{answer}");
    // One that says no more after its request, as `nc -N` does.
    let mut client = bed.client();
    client.write_all(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n\r\nbody").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(rest(&mut client).contains("POST / by"));
}

#[test]
fn a_loopback_address_is_served_too() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _server = serve(bind(&Address::Loopback(port)).unwrap(), "test", Echo).unwrap();
    let mut client = TcpStream::connect(port).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let own = client.local_addr().unwrap();
    assert!(rest(&mut client).contains(&format!("GET / by {own}")));
}

#[test]
fn a_body_is_dropped_and_one_that_is_too_long_is_not_waited_for() {
    let bed = Bed::new(Echo);
    let most = usize::try_from(BODY_MAX).unwrap();
    for (length, is_too_long) in [(0, false), (most, false), (most + 1, true)] {
        let head = format!("POST / HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n");
        let answer = bed.send(&[head.as_bytes(), &vec![b'x'; if is_too_long { 0 } else { length }]].concat());
        assert!(answer.contains(&format!("too long: {is_too_long}")), "{length}: {answer}");
        // In pieces, of which nobody says before how many there are.
        let mut pieces = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in vec![b'x'; length].chunks(4096) {
            pieces.extend(format!("{:x}\r\n", piece.len()).into_bytes());
            pieces.extend([piece, b"\r\n"].concat());
        }
        let answer = bed.send(&[&pieces[..], b"0\r\n\r\n"].concat());
        assert!(answer.contains(&format!("too long: {is_too_long}")), "{length} in pieces: {answer}");
    }
    // Who asks whether it shall send it is told the answer instead.
    let expects = "POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n";
    assert!(bed.send(expects.as_bytes()).starts_with("HTTP/1.1 200"));
}

#[test]
fn what_is_no_http_is_hung_up_on() {
    let bed = Bed::new(Echo);
    let long = format!("GET /{} HTTP/1.1\r\nHost: here\r\n\r\n", "x".repeat(HEAD_MAX));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
    let noise: Vec<u8> = (0..100_000_u32).map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    for bytes in [
        &b"\r\n\r\n\r\n\r\n"[..],
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
        b"GET / HTTP/1.1\r\nA\0: b\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
        &noise,
    ] {
        let mut client = bed.client();
        let _ = client.write_all(bytes);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let answer = rest(&mut client);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown:?}: {answer}");
        assert!(!answer.contains(" by "), "{shown:?}: {answer}");
    }
    assert!(bed.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").contains("GET / by"));
}

#[test]
fn a_client_that_is_slow_is_hung_up_on() {
    let patience = Patience { head: Duration::from_millis(200), connection: Duration::from_secs(2) };
    let bed = Bed::with(Echo, patience);
    let began = Instant::now();
    for (said, waits) in [
        (&b""[..], patience.head),
        (b"GET /", patience.head),
        (b"POST / HTTP/1.1\r\nContent-Length: 999\r\n\r\nslow", patience.connection),
    ] {
        let mut client = bed.client();
        client.write_all(said).unwrap();
        // A letter now and then makes it no faster.
        let mut more = client.try_clone().unwrap();
        std::thread::spawn(move || {
            while more.write_all(b"x").is_ok() && began.elapsed() < BOUND {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let asked = Instant::now();
        let answer = rest(&mut client);
        let took = asked.elapsed();
        assert!(!answer.contains(" by ") && took >= waits, "{said:?}: {took:?}, {answer}");
        assert!(waits == patience.connection || took < patience.connection, "{said:?}: {took:?}");
    }
}

#[test]
fn clients_that_say_nothing_shut_nobody_out() {
    let bed = Bed::new(Echo);
    let began = Instant::now();
    let idle: Vec<_> = (0..3 * clients::CLIENTS_MAX)
        .map(|number| {
            let mut client = bed.client();
            // Some say a part of what they want.
            let part = b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nbody";
            client.write_all(&part[..number.min(part.len())]).unwrap();
            client
        })
        .collect();
    for _ in 0..3 {
        assert!(bed.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").contains("GET / by"));
    }
    assert!(began.elapsed() < PATIENCE.head, "they were not waited for");
    drop(idle);
}

/// Answers when it is let.
struct Held(tokio::sync::watch::Receiver<bool>, mpsc::Sender<()>);
impl Service for Held {
    async fn answer(&self, _: Request) -> Answer {
        let _ = self.1.send(());
        let _ = self.0.clone().wait_for(|is_let| *is_let).await;
        Answer::new("at last\n".to_owned())
    }
}

#[test]
fn who_has_asked_is_answered_however_many_come_after() {
    let (let_go, held) = tokio::sync::watch::channel(false);
    let (asked, heard) = mpsc::channel();
    let bed = Bed::new(Held(held, asked));
    let ask = || {
        let mut client = bed.client();
        client.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
        client
    };
    let mut first: Vec<_> = (0..clients::CLIENTS_MAX).map(|_| ask()).collect();
    for _ in &first {
        heard.recv_timeout(BOUND).unwrap();
    }
    let mut later: Vec<_> = (0..2 * clients::CLIENTS_MAX).map(|_| ask()).collect();
    assert!(heard.recv_timeout(Duration::from_millis(100)).is_err(), "so many are served at once, and no more");
    let_go.send(true).unwrap();
    for client in first.iter_mut().chain(&mut later) {
        let answer = rest(client);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("at last\n"), "{answer}");
    }
}

#[test]
fn a_server_that_is_dropped_is_gone_with_its_socket_whatever_its_service_does() {
    let (_never, held) = tokio::sync::watch::channel(false);
    let (asked, heard) = mpsc::channel();
    let bed = Bed::new(Held(held, asked));
    let mut client = bed.client();
    client.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    heard.recv_timeout(BOUND).unwrap();
    let path = bed.path();
    let Bed { _server: server, folder: _folder } = bed;
    drop(server);
    assert!(!path.exists());
    assert_eq!(rest(&mut client), "");
}
