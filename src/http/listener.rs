//! Where a server listens: a unix socket, or an address that only this host reaches.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::Client;
use crate::names::SOCKET_PATH_MAX;

/// An address that nobody reaches but who is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Socket(PathBuf),
    /// A port on a loopback address.
    Loopback(SocketAddr),
}

/// Why a text is no such address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    /// It is of another form.
    #[error("an address is unix:/PATH, 127.0.0.1:PORT or [::1]:PORT")]
    Form,
    /// Other hosts reach it.
    #[error(
        "{0} is reached from other hosts, and what is said there can be read on the way; listen on 127.0.0.1 or a unix socket, and put a proxy with TLS before it"
    )]
    Reachable(SocketAddr),
    /// It leaves the port to chance.
    #[error("a port is a number from 1 to 65535, so that others know where to ask")]
    Port,
    /// The kernel takes no such path.
    #[error("a socket is named by its absolute path, of at most {SOCKET_PATH_MAX} bytes")]
    Path,
}

impl Address {
    /// Reads one.
    ///
    /// # Errors
    /// Where it is none, or other hosts reach it.
    pub fn new(text: &str) -> Result<Self, NoAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            let is_path = path.starts_with('/')
                && !path.ends_with('/')
                && path.len() <= SOCKET_PATH_MAX
                && !path.chars().any(char::is_control);
            return if is_path { Ok(Self::Socket(path.into())) } else { Err(NoAddress::Path) };
        }
        let address: SocketAddr = text.parse().map_err(|_| NoAddress::Form)?;
        match address {
            address if !address.ip().is_loopback() => Err(NoAddress::Reachable(address)),
            address if address.port() == 0 => Err(NoAddress::Port),
            address => Ok(Self::Loopback(address)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(address) => write!(f, "{address}"),
        }
    }
}

/// An address that is listened on: clients may connect, and wait until they are served.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

/// Listens on an address.
///
/// The socket that a process left there that has ended is replaced; one that somebody listens on, or what is no socket, is not.
/// A new one can be used by its folder's group: those who may ask are rarely of the user that runs stead.
///
/// # Errors
/// Where it is in use, or the kernel does not let us.
pub fn bind(address: &Address) -> io::Result<Listener> {
    Ok(Listener(match address {
        Address::Loopback(address) => Kind::Tcp(TcpListener::bind(address)?),
        Address::Socket(path) => {
            let (listener, file) = bind_socket(path)?;
            Kind::Unix(listener, file)
        }
    }))
}

fn bind_socket(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let group = group_of(folder)?;
    clear(path)?;
    let listener = UnixListener::bind(path)?;
    let file = SocketFile::new(path)?;
    // Until then the socket is its owner's alone.
    if fs::symlink_metadata(path)?.gid() != group {
        lchown(path, None, Some(group)).map_err(|error| {
            let why = format!("giving it to group {group}, which its folder has: {error}");
            io::Error::new(error.kind(), why)
        })?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok((listener, file))
}

/// The group of a folder to which nobody can write but root and us.
fn group_of(folder: &Path) -> io::Result<u32> {
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("its folder {}: {error}", folder.display()));
    let metadata = fs::metadata(folder).map_err(failed)?;
    let is_owned = metadata.uid() == 0 || metadata.uid() == nix::unistd::geteuid().as_raw();
    if metadata.mode() & 0o022 != 0 || !is_owned {
        // Also with the sticky bit: it keeps our socket from being removed, and not one of theirs from being there first, nor a
        // link from taking its place before its mode is set.
        let why = "others can write to it, and put a socket of their own there; use another folder";
        return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, why)));
    }
    Ok(metadata.gid())
}

/// Removes a socket that nobody listens on any more.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(there) if !there.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "what is there is no socket; move it away"))
        }
        Ok(_) if is_listened_on(path)? => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on it"))
        }
        Ok(_) => fs::remove_file(path),
    }
}

/// Whether a process listens on a socket. Does not wait for it.
fn is_listened_on(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(client.as_raw_fd(), &UnixAddr::new(path)?) {
        // EAGAIN: its queue is full (connect(2)).
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The file of a socket of ours, removed when this is dropped, unless another one is there by then.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    number: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let there = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), number: (there.dev(), there.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == self.number);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("removing {}: {error}", self.path.display());
        }
    }
}

/// A listener that an event loop waits for.
pub(super) enum Accepting {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
}

/// A connection.
pub(super) enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

impl Listener {
    /// Hands it to the event loop that this is called in; what it leaves on disk is separate.
    pub(super) fn ready(self) -> io::Result<(Accepting, Option<SocketFile>)> {
        match self.0 {
            Kind::Unix(listener, file) => {
                listener.set_nonblocking(true)?;
                Ok((Accepting::Unix(tokio::net::UnixListener::from_std(listener)?), Some(file)))
            }
            Kind::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Ok((Accepting::Tcp(tokio::net::TcpListener::from_std(listener)?), None))
            }
        }
    }
}

impl Accepting {
    /// The next client.
    pub(super) async fn next(&self) -> io::Result<(Stream, Client)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let process = stream.peer_cred().map(|who| Client::Process { uid: who.uid(), pid: who.pid() });
                Ok((Stream::Unix(stream), process.unwrap_or(Client::Unknown)))
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Client::Address(address)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_that_only_this_host_reaches() {
        for good in ["unix:/run/stead-push/push.sock", "127.0.0.1:9440", "127.9.9.9:1", "[::1]:9440"] {
            assert_eq!(Address::new(good).unwrap().to_string(), good);
        }
        for reachable in ["0.0.0.0:9440", "[::]:9440", "192.0.2.7:80", "[::ffff:127.0.0.1]:80", "10.0.0.1:0"] {
            assert!(matches!(Address::new(reachable), Err(NoAddress::Reachable(_))), "{reachable}");
        }
        for form in ["", "9440", ":9440", "localhost:9440", "127.0.0.1", "127.0.0.1:65536", "::1:9440", "/run/x.sock"] {
            assert_eq!(Address::new(form), Err(NoAddress::Form), "{form}");
        }
        assert_eq!(Address::new("127.0.0.1:0"), Err(NoAddress::Port));
        for path in ["unix:", "unix:push.sock", "unix:/run/", "unix:/a\nb", &format!("unix:/{}", "x".repeat(107))] {
            assert_eq!(Address::new(path), Err(NoAddress::Path), "{path}");
        }
    }

    fn socket_in(folder: &tempfile::TempDir) -> (PathBuf, Address) {
        let path = folder.path().join("push.sock");
        (path.clone(), Address::Socket(path))
    }

    #[test]
    fn a_socket_is_for_its_folders_group_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let (path, address) = socket_in(&folder);
        // Only root gives a folder to a group that it is not in itself.
        let group = if nix::unistd::geteuid().is_root() { 12345 } else { nix::unistd::getegid().as_raw() };
        lchown(folder.path(), None, Some(group)).unwrap();
        let listener = bind(&address).unwrap();
        let there = fs::symlink_metadata(&path).unwrap();
        assert_eq!((there.mode() & 0o7777, there.gid()), (0o660, group));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_was_left_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, address) = socket_in(&folder);
        drop(UnixListener::bind(&path).unwrap());
        let listener = bind(&address).unwrap();
        assert_eq!(bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // One that is not ours any more stays.
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        for make in [|path: &Path| fs::create_dir(path), |path: &Path| std::os::unix::fs::symlink("/dev/null", path)] {
            make(&path).unwrap();
            assert!(bind(&address).unwrap_err().to_string().contains("no socket"));
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
    }

    #[test]
    fn a_socket_whose_queue_is_full_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let (path, address) = socket_in(&folder);
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        nix::sys::socket::bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&fd, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _queued = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, address) = socket_in(&folder);
        for mode in [0o1777, 0o770] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert!(bind(&address).unwrap_err().to_string().contains("others can write"), "{mode:o}");
            assert!(!path.exists());
        }
        let missing = Address::Socket(folder.path().join("none/push.sock"));
        assert!(bind(&missing).unwrap_err().to_string().contains("its folder"), "{missing}");
    }

    #[test]
    fn a_port_that_is_in_use_is_told() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Loopback(taken.local_addr().unwrap());
        assert_eq!(bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
