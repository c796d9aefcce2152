//! HTTP as far as Firecracker speaks it: one request, one reply, and the connection ends, whatever either side says of
//! keeping it (RFC 9112). It needs no socket, only bytes.
//!
//! Firecracker 1.12.1 sends its heads in some 150 bytes, states the length of every body, and sends no body with a 204.

use std::io::{self, Read};

use httparse::{EMPTY_HEADER, Header, Response, Status};

use super::conversation::REPLY_MAX;
use crate::vmm::firecracker::Request;

/// No head that is waited for is longer, in bytes.
const HEAD_MAX: usize = 4 << 10;

/// No head that is waited for has more lines.
const HEADERS_MAX: usize = 32;

/// The bytes of a request.
pub(super) fn encode(request: &Request) -> Vec<u8> {
    let Request { method, path, body } = request;
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if !body.is_empty() {
        text += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    text += "\r\n";
    text += body;
    text.into_bytes()
}

/// Reads a reply: its status and its body. Nothing behind its end is waited for.
///
/// # Errors
/// `InvalidData` for what is no reply or a longer one than may be, `UnexpectedEof` when it ends too early.
pub(super) fn read_reply(mut reader: impl Read) -> io::Result<(u16, Vec<u8>)> {
    let mut bytes = Vec::new();
    let head = loop {
        read_more(&mut reader, &mut bytes)?;
        match Head::parse(&bytes[..bytes.len().min(HEAD_MAX)])? {
            Some(head) => break head,
            None if bytes.len() >= HEAD_MAX => return Err(nonsense(format!("a head of more than {HEAD_MAX} bytes"))),
            None => {}
        }
    };
    let end = head.length.saturating_add(head.body);
    if end > REPLY_MAX {
        return Err(nonsense(format!("a reply of {end} bytes")));
    }
    while bytes.len() < end {
        read_more(&mut reader, &mut bytes)?;
    }
    bytes.truncate(end);
    bytes.drain(..head.length);
    Ok((head.status, bytes))
}

/// Reads what there is.
fn read_more(reader: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; 4096];
    let count = loop {
        match reader.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    if count == 0 {
        let text = format!("it hung up after {} bytes of its reply", bytes.len());
        return Err(super::error(io::ErrorKind::UnexpectedEof, text));
    }
    bytes.extend_from_slice(&piece[..count]);
    Ok(())
}

/// What a reply says before its body.
struct Head {
    status: u16,
    /// Its own bytes.
    length: usize,
    /// The bytes of the body behind it.
    body: usize,
}

impl Head {
    /// Reads it from the first bytes of a reply; `None` when more of them are needed.
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut response = Response::new(&mut headers);
        let length = match response.parse(bytes) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(None),
            Err(error) => return Err(nonsense(format!("it is no HTTP: {error}"))),
        };
        // Of those below 200 another one would follow (RFC 9110, 15.2), which nothing here asks for.
        let Some(status @ 200..) = response.code else { return Err(nonsense("a status that ends nothing")) };
        let body = match status {
            // Who answers 503 has no room and hangs up at once, with the request unread: what it says of that may be cut off.
            204 | 503 => 0,
            _ => body_length(response.headers)?,
        };
        Ok(Some(Self { status, length, body }))
    }
}

/// The length of the body: stated, once. One in chunks, or one that lasts until the connection ends, Firecracker never sends.
fn body_length(headers: &[Header<'_>]) -> io::Result<usize> {
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(nonsense("a body with a Transfer-Encoding"));
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let one = decimal(header.value).ok_or_else(|| nonsense("a Content-Length that is no number"))?;
            if length.replace(one).is_some() {
                return Err(nonsense("more than one Content-Length"));
            }
        }
    }
    length.ok_or_else(|| nonsense("a body without a Content-Length"))
}

/// The number that these digits write.
fn decimal(digits: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(digits).ok()?;
    // `parse` takes a sign too.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn nonsense(text: impl Into<String>) -> io::Error {
    super::error(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::VmmCommand;
    use crate::vmm::firecracker::{QUERY, request};

    /// What Firecracker 1.12.1 sends.
    const STATE: &str = "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\nContent-Length: 19\r\n\r\n{\"state\":\"Running\"}";
    const DONE: &str = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
    const NO_ROOM: &str = "HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
         { \"error\": \"Too many open connections\" }";

    /// One byte at a time, each after a signal.
    struct Drip<'a>(&'a [u8], bool);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.0.read(&mut buffer[..1])
        }
    }

    /// The same, in one piece and in many.
    fn read(reply: &str) -> io::Result<(u16, String)> {
        let whole = read_reply(reply.as_bytes());
        let dripped = read_reply(Drip(reply.as_bytes(), false));
        match (&whole, &dripped) {
            (Ok(one), Ok(other)) => assert_eq!(one, other),
            (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
            other => panic!("{other:?}"),
        }
        whole.map(|(status, body)| (status, String::from_utf8(body).unwrap()))
    }

    #[track_caller]
    fn is_nonsense(reply: &str, why: &str) {
        let error = read(reply).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }

    #[test]
    fn what_is_asked_is_one_piece_of_http() {
        assert_eq!(encode(&QUERY), b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
        let pause = String::from_utf8(encode(&request(VmmCommand::Pause))).unwrap();
        assert!(pause.starts_with("PATCH /vm HTTP/1.1\r\n"), "{pause}");
        assert!(pause.ends_with("\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}"), "{pause}");
    }

    #[test]
    fn what_firecracker_sends_is_read_to_its_end_and_no_further() {
        let state = (200, r#"{"state":"Running"}"#.to_owned());
        assert_eq!(read(STATE).unwrap(), state);
        assert_eq!(read(&format!("{STATE}{DONE}")).unwrap(), state);
        assert_eq!(read(DONE).unwrap(), (204, String::new()));
        let refused = "HTTP/1.1 400 \r\ncontent-length:  2 \r\nConnection: close\r\n\r\n{}";
        assert_eq!(read(refused).unwrap(), (400, "{}".to_owned()));
    }

    #[test]
    fn no_room_is_told_however_little_of_it_arrives() {
        let head = NO_ROOM.find('{').unwrap();
        for end in [head, head + 1, NO_ROOM.len()] {
            assert_eq!(read(&NO_ROOM[..end]).unwrap(), (503, String::new()));
        }
    }

    #[test]
    fn a_reply_that_ends_anywhere_in_it_is_none() {
        for end in 0..STATE.len() {
            let error = read(&STATE[..end]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}: {error}");
        }
    }

    #[test]
    fn what_is_no_http_is_told_as_soon_as_it_shows() {
        for garbage in ["{\"QMP\": {}}\r\n", "SSH-2.0-x\r\n", "HTTP/2.0 200 \r\n\r\n", "HTTP/1.1 2x0 \r\n", "\0\0"] {
            is_nonsense(garbage, "no HTTP");
        }
        is_nonsense("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 \r\n\r\n", "a status that ends nothing");
        is_nonsense("HTTP/1.1 000 \r\n\r\n", "a status that ends nothing");
    }

    #[test]
    fn a_body_has_one_stated_length() {
        is_nonsense("HTTP/1.1 200 \r\n\r\n{}", "without a Content-Length");
        is_nonsense("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding");
        is_nonsense("HTTP/1.1 200 \r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", "more than one");
        for length in ["", "+2", "-2", "2,2", "0x2", "2 2", "99999999999999999999"] {
            is_nonsense(&format!("HTTP/1.1 200 \r\nContent-Length: {length}\r\n\r\n{{}}"), "no number");
        }
    }

    #[test]
    fn what_is_too_long_is_not_waited_for() {
        for length in [REPLY_MAX, usize::MAX] {
            is_nonsense(&format!("HTTP/1.1 200 \r\nContent-Length: {length}\r\n\r\n"), "a reply of");
        }
        let endless = format!("HTTP/1.1 200 \r\nServer: {}", "x".repeat(HEAD_MAX));
        is_nonsense(&endless, "more than 4096 bytes");
        is_nonsense(&"\r\n".repeat(HEAD_MAX), "more than 4096 bytes");
        let lines = format!("HTTP/1.1 200 \r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX + 1));
        is_nonsense(&lines, "too many headers");
        let head = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n", REPLY_MAX - 42);
        let longest = head + &"x".repeat(REPLY_MAX);
        assert_eq!(read_reply(longest.as_bytes()).unwrap().1.len(), REPLY_MAX - 42);
    }
}
