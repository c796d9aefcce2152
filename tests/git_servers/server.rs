//! Servers on a port of the test's own host: a real one for each connection, as inetd runs them, or none that ever speaks.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Serves until it is dropped; then its connections are cut, and the next ones refused.
pub struct Server {
    port: u16,
    shared: Arc<Shared>,
    accepts: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    children: Mutex<Vec<Child>>,
    connections: Mutex<Vec<TcpStream>>,
    hanging: AtomicUsize,
}

impl Server {
    fn start(port: u16, mut serve: impl FnMut(&Arc<Shared>, TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let accepts = std::thread::spawn(move || {
            for peer in listener.incoming() {
                if theirs.stop.load(Ordering::SeqCst) {
                    return;
                }
                let peer = peer.unwrap();
                theirs.connections.lock().unwrap().push(peer.try_clone().unwrap());
                serve(&theirs, peer);
            }
        });
        Self { port, shared, accepts: Some(accepts) }
    }

    /// Each connection is the input and output of this program.
    pub fn of(port: u16, mut program: Command) -> Self {
        Self::start(port, move |shared, peer| {
            let output = OwnedFd::from(peer.try_clone().unwrap());
            let child = program.stdin(OwnedFd::from(peer)).stdout(output).spawn().unwrap();
            shared.children.lock().unwrap().push(child);
        })
    }

    /// Takes every connection, and says nothing.
    pub fn silent(port: u16) -> Self {
        Self::start(port, |shared, _| {
            shared.hanging.fetch_add(1, Ordering::SeqCst);
        })
    }

    /// Leads to another port, and hangs after so many bytes of an answer.
    pub fn stalling(port: u16, to: u16, after: usize) -> Self {
        Self::start(port, move |shared, peer| {
            let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
            shared.connections.lock().unwrap().push(server.try_clone().unwrap());
            let (asks, asked) = (peer.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || pass_on(asks, asked, usize::MAX));
            let shared = shared.clone();
            std::thread::spawn(move || {
                if pass_on(server, peer, after) {
                    shared.hanging.fetch_add(1, Ordering::SeqCst);
                }
            });
        })
    }

    /// How many wait for the rest of an answer, or did.
    pub fn hanging(&self) -> usize {
        self.shared.hanging.load(Ordering::SeqCst)
    }
}

/// Copies so many bytes, and no end of it after them; whether there were so many.
fn pass_on(mut from: TcpStream, mut to: TcpStream, mut most: usize) -> bool {
    let mut bytes = [0; 4096];
    while most > 0 {
        let part = most.min(bytes.len());
        let read = from.read(&mut bytes[..part]).unwrap_or(0);
        if read == 0 || to.write_all(&bytes[..read]).is_err() {
            let _ = to.shutdown(Shutdown::Write);
            return false;
        }
        most -= read;
    }
    true
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        let _ = self.accepts.take().unwrap().join();
        for connection in self.shared.connections.lock().unwrap().iter() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        for child in self.shared.children.lock().unwrap().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
