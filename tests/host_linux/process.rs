//! Processes: pinned, told apart, heard of when they end, killed through their pidfd only.

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use stead::host::{HostOps, HostView, SocketPeer, SpawnError};
use stead::state::ExitStatus;

use crate::bed::{BOUND, Vm, ended, host, is_root, wait};

#[test]
fn the_listener_on_a_vmms_socket_is_that_vmm() {
    let vm = Vm::firecracker("halt");
    assert_eq!(vm.host.socket_peer(&vm.socket(1)), SocketPeer::NoSocket);
    let process = vm.start();
    assert_eq!(vm.host.socket_peer(&vm.socket(1)), SocketPeer::Listener(process.clone()));
    let info = vm.host.inspect(&process).unwrap().unwrap();
    let id = vm.id(1).into_bytes();
    assert!(info.argv.windows(2).any(|pair| pair == [b"--id".to_vec(), id.clone()]));
    assert!(vm.host.scan_processes().unwrap().contains(&(process.identity.pid, vm.id(1))));
    vm.host.kill(&process).unwrap();
    ended(&*vm.host, &process);
    assert_eq!(vm.host.socket_peer(&vm.socket(1)), SocketPeer::NobodyListens, "its socket file stays");
    assert_eq!(vm.host.inspect(&process).unwrap(), None);
    assert_eq!(vm.host.open_process(process.identity.pid).unwrap(), None);
}

#[test]
fn what_a_process_takes_of_the_host_is_told_until_it_ends() {
    let vm = Vm::firecracker("halt");
    let process = vm.start();
    let usage = vm.host.usage(&process).unwrap().unwrap();
    assert!((64 << 10..1 << 30).contains(&usage.resident), "{usage:?}");
    vm.host.kill(&process).unwrap();
    ended(&*vm.host, &process);
    assert_eq!(vm.host.usage(&process).unwrap(), None);

    let mine = vm.host.open_process(i32::try_from(std::process::id()).unwrap()).unwrap().unwrap();
    let clock = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap();
    let began = clock();
    wait("some CPU time has passed", || (clock() > began + Duration::from_millis(200)).then_some(()).or_else(spin));
    let (before, told, after) = (clock(), vm.host.usage(&mine).unwrap().unwrap().cpu, clock());
    let tick = Duration::from_millis(20);
    assert!(before <= told + tick && told <= after + tick, "{told:?} is not between {before:?} and {after:?}");
}

/// Takes some of the CPU.
fn spin() -> Option<()> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(20) {}
    None
}

#[test]
fn the_listener_on_qemus_identity_socket_is_qemu_time_and_again() {
    let vm = Vm::qemu();
    let process = vm.start();
    for _ in 0..20 {
        wait("the listener is told", || match vm.host.socket_peer(&vm.identity_socket(1)) {
            SocketPeer::Listener(peer) => {
                assert_eq!(peer, process);
                Some(())
            }
            // Its queue is short.
            SocketPeer::Unknown(_) => None,
            other => panic!("{other:?}"),
        });
    }
}

#[test]
fn a_stranger_on_the_socket_is_told_as_who_it_is() {
    let vm = Vm::firecracker("halt");
    let socket = vm.root.path().join("s.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let myself = vm.host.open_process(i32::try_from(std::process::id()).unwrap()).unwrap().unwrap();
    assert_eq!(vm.host.socket_peer(&socket), SocketPeer::Listener(myself));
    drop(listener);
    assert_eq!(vm.host.socket_peer(&socket), SocketPeer::NobodyListens);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "").unwrap();
    assert_eq!(vm.host.socket_peer(&socket), SocketPeer::NobodyListens, "a plain file");
    assert_eq!(vm.host.socket_peer(&socket.join("below")), SocketPeer::NoSocket);
}

#[test]
fn a_full_queue_is_not_absence() {
    let vm = Vm::firecracker("halt");
    let socket = vm.root.path().join("s.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut pending = Vec::new();
    let answer = wait("the queue is full", || {
        let stream =
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::io::ioctl_fionbio(&stream, true).unwrap();
        let address = rustix::net::SocketAddrUnix::new(&socket).unwrap();
        let _ = rustix::net::connect(&stream, &address);
        pending.push(stream);
        match vm.host.socket_peer(&socket) {
            SocketPeer::Listener(_) => None,
            other => Some(other),
        }
    });
    assert_eq!(answer, SocketPeer::Unknown("its queue of connections is full".to_owned()));
}

#[test]
fn a_listener_that_died_is_not_taken_for_alive_though_its_socket_is_inherited() {
    let vm = Vm::firecracker("halt");
    let socket = vm.root.path().join("s.sock");
    // The middle process listens, leaves the socket to a child, and ends.
    let script = "import os,socket,sys,time\n\
                  s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(5)\n\
                  os.fork() and os._exit(0)\n\
                  time.sleep(600)";
    let process = vm.try_spawn(&vm.program("/usr/bin/python3", &["-c", script, socket.to_str().unwrap()])).unwrap();
    ended(&*vm.host, &process);
    assert_eq!(vm.host.exit_status(&process), ExitStatus::Code(0));
    assert_eq!(vm.host.socket_peer(&socket), SocketPeer::NobodyListens);
    // The child holds the lock, by which the test finds it.
    let stead::host::LockProbe::Held(Some(child)) = vm.host.probe_lock(&vm.lock()) else { panic!("the child lives") };
    let child = vm.host.open_process(child).unwrap().unwrap();
    vm.host.kill(&child).unwrap();
    ended(&*vm.host, &child);
}

#[test]
fn every_way_to_end_is_told() {
    for (args, expected) in [
        (&["-c", "exit 0"][..], ExitStatus::Code(0)),
        (&["-c", "exit 3"], ExitStatus::Code(3)),
        (&["-c", "kill -TERM $$"], ExitStatus::Signal(15)),
    ] {
        let vm = Vm::firecracker("halt");
        let process = vm.try_spawn(&vm.program("/bin/sh", args)).unwrap();
        assert_eq!(vm.end_of(&process), expected, "{args:?}");
        assert_eq!(vm.host.exit_status(&process), expected, "asked again: {args:?}");
    }
}

#[test]
fn a_zombie_is_dead_and_is_not_signalled() {
    let vm = Vm::firecracker("halt");
    // Asked through the kernel, not through the host, which would reap it.
    let process = vm.try_spawn(&vm.program("/bin/true", &[])).unwrap();
    let pid = process.identity.pid;
    wait("it is a zombie", || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ").then_some(()));
    assert_eq!(vm.host.inspect(&process).unwrap(), None);
    assert_eq!(vm.host.open_process(pid).unwrap(), None);
    assert!(!vm.host.kill(&process).unwrap());
    assert_eq!(vm.host.exit_status(&process), ExitStatus::Code(0));
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "and now it is reaped");
}

#[test]
fn a_stranger_child_whose_end_nobody_took_is_reaped_with_the_next_start() {
    let vm = Vm::firecracker("halt");
    let first = vm.try_spawn(&vm.program("/bin/true", &[])).unwrap();
    let pid = first.identity.pid;
    wait("it is a zombie", || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ").then_some(()));
    let second = vm.try_spawn(&vm.program("/bin/true", &[])).unwrap();
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    assert_eq!(vm.host.exit_status(&first), ExitStatus::Code(0), "and its status is kept");
    vm.end_of(&second);
}

#[test]
fn the_end_of_a_process_that_is_no_child_is_told_too() {
    let vm = Vm::firecracker("halt");
    for (how, expected) in [("exit 4", ExitStatus::Code(4)), ("kill -KILL $$", ExitStatus::Signal(9))] {
        // The shell in between is the parent; it waits until it is told, so that the zombie is seen too.
        let go = vm.root.path().join("go");
        let pid_file = vm.root.path().join("pid");
        let script = format!(
            "sh -c 'while [ ! -e {go} ]; do sleep 0.01; done; {how}' & echo $! > {pid}.new; mv {pid}.new {pid}; exec sleep 600",
            go = go.display(),
            pid = pid_file.display(),
        );
        let parent = vm.try_spawn(&vm.program("/bin/sh", &["-c", &script])).unwrap();
        let pid: i32 = wait("its pid", || fs::read_to_string(&pid_file).ok()?.trim().parse().ok());
        let process = vm.host.open_process(pid).unwrap().unwrap();
        assert_eq!(vm.host.exit_status(&process), ExitStatus::Unknown, "it lives");
        fs::write(&go, "").unwrap();
        // `sleep` reaps nobody.
        assert_eq!(vm.end_of(&process), expected, "{how}: a zombie");
        vm.host.kill(&parent).unwrap();
        ended(&*vm.host, &parent);
        wait("init reaps it", || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()));
        // Since Linux 6.15; before that nobody knows.
        let known = vm.host.exit_status(&process);
        assert!([expected, ExitStatus::Unknown].contains(&known), "{how}: {known:?}");
        fs::remove_file(&go).unwrap();
        fs::remove_file(&pid_file).unwrap();
    }
}

#[test]
fn the_kernel_tells_of_an_end_at_once_inside_and_outside_of_a_runtime() {
    let vm = Vm::firecracker("halt");
    let latency = || {
        let process = vm.try_spawn(&vm.program("/bin/sleep", &["600"])).unwrap();
        let (sender, receiver) = mpsc::channel();
        vm.host.watch_exit(&process, Box::new(move || sender.send(Instant::now()).unwrap())).unwrap();
        let killed = Instant::now();
        vm.host.kill(&process).unwrap();
        let told = receiver.recv_timeout(BOUND).unwrap();
        // Whoever watches what has ended is told at once too.
        ended(&*vm.host, &process);
        told - killed
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut latencies: Vec<Duration> = (0..10).map(|_| latency()).collect();
    // As turns of VMs do: on a thread of the runtime that is not the one which waits for events.
    latencies.extend(std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let _inside = runtime.handle().enter();
            (0..10).map(|_| latency()).collect::<Vec<_>>()
        });
        runtime.block_on(async {
            while !worker.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        worker.join().unwrap()
    }));
    latencies.sort_unstable();
    println!("kill to callback: median {:?}, longest {:?}", latencies[10], latencies[19]);
    assert!(latencies[10] < Duration::from_millis(50), "{latencies:?}");
}

#[test]
fn numbers_that_are_no_process_are_nobody() {
    let host = host();
    for pid in [0, -1, i32::MIN, i32::MAX, 4_194_304] {
        assert_eq!(host.open_process(pid).unwrap(), None, "{pid}");
    }
    // A thread has a number too, and is no process.
    let (sender, receiver) = mpsc::channel();
    let (stop, stopped) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        sender.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let _ = stopped.recv();
    });
    let tid = receiver.recv().unwrap();
    assert_eq!(host.open_process(tid).unwrap(), None);
    drop(stop);
    thread.join().unwrap();
    let init = host.open_process(1).unwrap().unwrap();
    if is_root() {
        assert!(host.inspect(&init).unwrap().is_some());
    }
}

#[test]
fn a_program_that_cannot_be_run_is_told_with_the_reason_and_leaves_no_zombie() {
    let vm = Vm::firecracker("halt");
    for (program, errno) in [("/nonexistent/vmm", nix::libc::ENOENT), ("/etc/passwd", nix::libc::EACCES)] {
        match vm.try_spawn(&vm.program(program, &[])) {
            Err(SpawnError::Failed { source, .. }) => assert_eq!(source.raw_os_error(), Some(errno)),
            other => panic!("{other:?}"),
        }
        assert_eq!(vm.host.probe_lock(&vm.lock()), stead::host::LockProbe::Free);
    }
}

#[test]
fn a_vmm_inherits_nothing_but_its_lock_and_its_outputs() {
    let vm = Vm::firecracker("halt");
    // Not close-on-exec, as a careless library or parent leaves it.
    let leaky = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leaky, rustix::io::FdFlags::empty()).unwrap();
    let script = "ls -l /proc/self/fd; env; pwd; ps -o sid=,pid= -p $$; umask";
    let process = vm.try_spawn(&vm.program("/bin/sh", &["-c", script])).unwrap();
    assert_eq!(vm.end_of(&process), ExitStatus::Code(0));
    let console = vm.console();
    let links: Vec<&str> = console.lines().filter(|line| line.contains(" -> ")).collect();
    // `ls` opens the folder it lists.
    assert_eq!(links.len(), 4, "{console}");
    assert!(
        links[0].contains("vmm.lock") && links[1].contains("console.log") && links[2].contains("vmm.log"),
        "{console}"
    );
    let variables = console.lines().filter(|line| line.contains('=')).map(|line| line.split('=').next().unwrap());
    // The shell adds its own.
    assert!(variables.into_iter().all(|name| ["PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(&name)), "{console}");
    assert!(console.lines().any(|line| line == "/"), "{console}");
    let pid = process.identity.pid;
    assert!(console.lines().any(|line| line.split_whitespace().eq([pid.to_string(), pid.to_string()])), "{console}");
    assert!(console.contains("0077"), "{console}");

    // Not by the shell, which changes its masks as it likes.
    let before = console.len();
    let process = vm.try_spawn(&vm.program("/bin/grep", &["-E", "SigIgn|SigBlk", "/proc/self/status"])).unwrap();
    assert_eq!(vm.end_of(&process), ExitStatus::Code(0));
    let console = vm.console().split_off(before);
    let masks: Vec<_> = console.lines().filter_map(|line| line.split_once(":\t")).collect();
    assert_eq!(masks.len(), 2, "{console}");
    for (name, mask) in masks {
        // 32 and 33 belong to the C library, which lets nobody touch them.
        let mask = u64::from_str_radix(mask, 16).unwrap() & !(0b11 << 31);
        // Why: `who_hangs_up_before_he_is_answered_kills_no_vm`.
        let expected = if name == "SigBlk" { 1 << (Signal::PIPE.as_raw() - 1) } else { 0 };
        assert_eq!(mask, expected, "{name}: {console}");
    }
}

#[test]
fn outputs_are_appended_to() {
    let vm = Vm::firecracker("halt");
    for word in ["one", "two"] {
        let process = vm.try_spawn(&vm.program("/bin/sh", &["-c", &format!("echo {word}")])).unwrap();
        vm.end_of(&process);
    }
    assert_eq!(vm.console(), "one\ntwo\n");
}
