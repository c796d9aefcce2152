//! A VMM that runs nothing: it holds an API socket and answers on it as Firecracker does. So small that thousands of them
//! fit on a host. Compiled by itself, without a library but std's.
//!
//! The first line on its standard output says when it began: `began NANOSECONDS`, of CLOCK_MONOTONIC.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
}

fn monotonic_ns() -> i64 {
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the pointer is to a live value of the right layout (clock_gettime(2), x86-64); 1 is CLOCK_MONOTONIC.
    unsafe { clock_gettime(1, &raw mut time) };
    time.seconds * 1_000_000_000 + time.nanoseconds
}

fn main() {
    let began = monotonic_ns();
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == "--version") {
        println!("Firecracker v1.12.1");
        return;
    }
    // A single write: whoever reads the file sees all of it or nothing.
    let _ = std::io::stdout().write_all(format!("began {began}\n").as_bytes());
    let socket = args.iter().position(|arg| arg == "--api-sock").and_then(|at| args.get(at + 1));
    let listener = UnixListener::bind(socket.expect("--api-sock PATH")).expect("the socket can be made");
    let mut is_paused = false;
    for stream in listener.incoming().flatten() {
        serve(stream, &mut is_paused);
    }
}

/// One client, until it closes.
fn serve(mut stream: UnixStream, is_paused: &mut bool) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let request = String::from_utf8_lossy(&buffer[..count]);
        if request.starts_with("PUT /actions") {
            std::process::exit(0);
        }
        let reply = if request.starts_with("PATCH /vm") {
            *is_paused = request.contains("Paused");
            "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n".to_owned()
        } else {
            let state = if *is_paused { "Paused" } else { "Running" };
            let body = format!(r#"{{"id":"standin","state":"{state}","vmm_version":"1.12.1","app_name":"Firecracker"}}"#);
            format!(
                "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        if stream.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}
