//! The floors: minimal programs that make only the system calls that cannot be avoided. Each is a mode of this program's own
//! (`figures floor:NAME ...`), so that it is a process of its own as stead is.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A floor as a process, that is killed when this goes.
pub struct Floor(Child);

impl Floor {
    /// Starts it, and waits until it says that it is ready.
    pub fn start(name: &str, args: &[&Path]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg(format!("floor:{name}"))
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program again");
        let mut ready = [0];
        child.stdout.as_mut().expect("it is piped").read_exact(&mut ready).expect("it becomes ready");
        Self(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn say_ready() {
    let mut out = io::stdout();
    out.write_all(b"!").and_then(|()| out.flush()).expect("whoever started it listens");
}

/// Who is waited for by a scope of threads may find itself unparked afterwards.
fn wait_for_the_end() {
    loop {
        std::thread::park();
    }
}

/// Runs one, for as long as it is not killed.
pub fn main(name: &str, args: &[String]) {
    match name {
        "start" => start(Path::new(&args[0]), Path::new(&args[1]), Path::new(&args[2])),
        "death" => death(args[0].parse().expect("a pid"), Path::new(&args[1])),
        "memory" => memory(Path::new(&args[0])),
        other => panic!("no floor is called {other}"),
    }
}

/// inotify, read, parse, one durable write, exec.
fn start(manifests: &Path, state: &Path, program: &Path) {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
    inotify.add_watch(manifests, AddWatchFlags::IN_MOVED_TO).expect("a watch");
    say_ready();
    let mut children = Vec::new();
    loop {
        for event in inotify.read_events().expect("an event") {
            let Some(name) = event.name else { continue };
            let text = fs::read_to_string(manifests.join(&name)).expect("the manifest");
            let document: serde_json::Value = serde_yaml::from_str(&text).expect("YAML");
            let vm = document["metadata"]["name"].as_str().expect("a name").to_owned();
            let folder = state.join(&vm);
            let record = vec![b'x'; 1024];
            write_durable(&folder, "handles.json", &record);
            let open =
                |file: &str| fs::OpenOptions::new().append(true).create(true).open(folder.join(file)).expect("a log");
            // Its lock goes with the open file, which the child inherits.
            let lock = open("vmm.lock");
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("nobody holds it");
            let mut command = Command::new(program);
            command.args(["--id", &vm, "--api-sock"]).arg(folder.join("sock"));
            command.stdin(lock).stdout(open("console.log")).stderr(open("vmm.log")).env_clear();
            children.push(command.spawn().expect("the program"));
        }
    }
}

/// Temporary file, fsync, rename, fsync of the folder.
pub fn write_durable(folder: &Path, name: &str, bytes: &[u8]) {
    let temporary = folder.join(".new");
    let mut file = File::create(&temporary).expect("a file");
    file.write_all(bytes).and_then(|()| file.sync_all()).expect("it is written");
    fs::rename(&temporary, folder.join(name)).expect("it is renamed");
    File::open(folder).and_then(|folder| folder.sync_all()).expect("the folder is synced");
}

/// A pidfd, polled; then the first write of what follows.
fn death(pid: i32, file: &Path) {
    let pidfd = pidfd_open(Pid::from_raw(pid).expect("a pid"), PidfdFlags::empty()).expect("it lives");
    say_ready();
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).expect("its end");
    File::create(file).expect("a file");
    wait_for_the_end();
}

/// The manifests, parsed and kept.
fn memory(manifests: &Path) {
    let source = stead::desired::SourceName("floor".to_owned());
    let desired =
        stead::desired::load::Loader::new(source, manifests.to_owned(), None).load(&std::collections::BTreeSet::new());
    say_ready();
    wait_for_the_end();
    drop(desired);
}

/// For each VM: its manifest, its record and its ledger read and parsed, a connection to its socket, one GET and its reply.
pub fn look_at_each(manifests: &Path, state: &Path, names: &[String]) -> usize {
    let mut running = 0;
    for name in names {
        let text = fs::read_to_string(manifests.join(format!("{name}.yaml"))).expect("the manifest");
        let manifest: serde_json::Value = serde_yaml::from_str(&text).expect("YAML");
        assert_eq!(manifest["metadata"]["name"], name.as_str());
        let folder = state.join("vms").join(name);
        let read = |file: &str| -> serde_json::Value {
            serde_json::from_slice(&fs::read(folder.join(file)).expect("a record")).expect("JSON")
        };
        let (handles, _ledger) = (read("handles.json"), read("ledger.json"));
        let socket = PathBuf::from(handles["api_socket"].as_str().expect("a path"));
        let mut stream = UnixStream::connect(socket).expect("somebody listens");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n").expect("it reads");
        let mut reply = [0; 1024];
        let count = stream.read(&mut reply).expect("it answers");
        running += usize::from(reply[..count].windows(7).any(|word| word == b"Running"));
    }
    running
}

/// The metadata of each file, one dump of links, one of loop devices and one of device-mapper devices.
pub fn dumps(files: &[PathBuf]) -> usize {
    let mut count = 0;
    for file in files {
        count += usize::from(fs::symlink_metadata(file).is_ok());
    }
    count + dump_links() + list("/sys/block") + list("/sys/class/misc")
}

fn list(folder: &str) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// One RTM_GETLINK dump (rtnetlink(7)), its answer read and counted in bytes.
fn dump_links() -> usize {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
    use std::os::fd::AsRawFd;
    let kind = SockType::Raw;
    let socket =
        socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute).expect("netlink");
    // struct nlmsghdr {len 40, RTM_GETLINK, NLM_F_REQUEST|NLM_F_DUMP, seq, pid}, struct ifinfomsg, all zeros, and struct
    // rtattr {len 8, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS}.
    let mut request = [0_u8; 40];
    request[0] = 40;
    request[4] = 18;
    request[6..8].copy_from_slice(&0x301_u16.to_ne_bytes());
    request[32..40].copy_from_slice(&[8, 0, 29, 0, 8, 0, 0, 0]);
    send(socket.as_raw_fd(), &request, MsgFlags::empty()).expect("a request");
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let count = recv(socket.as_fd().as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("an answer");
        bytes += count;
        // NLMSG_DONE is a message, and a datagram, of its own.
        if count < 16 || u16::from_ne_bytes([buffer[4], buffer[5]]) == 3 {
            return bytes;
        }
    }
}
