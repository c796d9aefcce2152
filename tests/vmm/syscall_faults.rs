//! Every system call that `stead` makes fails, with every error that hosts in trouble give, or is where it is killed. Whatever
//! becomes of the pass in which that happens, no VM that nobody changed is touched, and the next passes bring the host to
//! where it should be.
//!
//! The calls are counted in an undisturbed pass, not listed: one that a new version makes is covered by itself. Which of
//! the calls of a kind it is, is chosen by chance; `STEAD_SYSCALL_FAULTS=n` tries n of them with each trouble, and
//! `STEAD_SYSCALL=name` only those of this name.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::libc::{EBUSY, EINTR, EIO, EMFILE, ENOMEM, ENOSPC};
use stead::host::sim::Random;
use syscalls::Sysno;

use crate::bed::{Life, Vmm, is_alive, manifest};
use crate::network::Net;
use crate::supervisor::{self, Answer, Calls};

const TROUBLES: [Answer; 7] = [
    Answer::Kill,
    Answer::Fail(ENOSPC),
    Answer::Fail(EIO),
    Answer::Fail(EMFILE),
    Answer::Fail(EINTR),
    Answer::Fail(ENOMEM),
    Answer::Fail(EBUSY),
];
/// Longer than anything that a pass waits for: one that takes so long hangs.
const BOUND: Duration = Duration::from_secs(50);
const HANGS: &str = "it hangs";
/// No child that stead waits for by itself lives so long.
const STD_WAITS: Duration = Duration::from_secs(3);

/// A host on which VMs come, change and go in each round, and one stays.
struct Troubled {
    net: Net,
    calm: Life,
    round: usize,
}

impl Troubled {
    fn new() -> Self {
        // Faults follow each other faster than a VM could show that it is well again.
        let net = Net::new().with_env("STEAD_BACKOFF_MAX", "200ms");
        net.host.apply("calm.yaml", &with_tap("calm"));
        net.host.apply("web.yaml", &with_tap("web"));
        net.once(0);
        let calm = net.host.running("calm");
        Self { net, calm, round: 0 }
    }

    /// Declares something else: one VM is replaced, and another comes or goes.
    fn change(&mut self) {
        self.round += 1;
        let memory = format!("memory: {}Mi", 4 + self.round % 2);
        self.net.host.apply("web.yaml", &with_tap("web").replace("memory: 4Mi", &memory));
        if self.has_guest() {
            self.net.host.apply("guest.yaml", &with_tap("guest"));
        } else {
            self.net.host.remove("guest.yaml");
        }
    }

    fn has_guest(&self) -> bool {
        self.round % 2 == 1
    }

    /// One pass in which these calls are told to `answer`: what it printed, and how it ended.
    fn pass(&self, when: &str, calls: Calls, answer: impl FnMut(i64) -> Answer + Send + 'static) -> String {
        let mut command = self.net.command(&["reconcile", "--once", "--timeout", "20s"]);
        let log = self.net.host.root.path().join("pass.log");
        let file = std::fs::File::create(&log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file).stdin(Stdio::null());
        let mut child = supervisor::spawn(&mut command, Path::new(env!("CARGO_BIN_EXE_stead")), calls, answer);
        let ended = ends(&mut child);
        let said = std::fs::read_to_string(log).unwrap_or_default();
        assert_ne!(ended, HANGS, "{when}: {said}");
        format!("{ended}\n{said}")
    }

    /// The host is as declared after some undisturbed passes, and who was not changed was not touched.
    fn recovers(&self, when: &str) {
        let is_calm = self.net.host.life("calm").as_ref() == Some(&self.calm) && is_alive(self.calm.pid);
        assert!(is_calm, "{when}: a VM that nobody changed was touched: {:?}", self.net.host.handles("calm"));
        let start = Instant::now();
        let mut said = String::new();
        while start.elapsed() < BOUND {
            let output = self.net.stead(&["reconcile", "--once"]);
            said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            if output.status.success() {
                return self.is_as_declared(when);
            }
        }
        panic!("{when}: it does not recover: {said}");
    }

    fn is_as_declared(&self, when: &str) {
        let host = &self.net.host;
        assert_eq!(host.life("calm").as_ref(), Some(&self.calm), "{when}: a VM that nobody changed was touched");
        let web = host.handles("web").unwrap_or_else(|| panic!("{when}: web has no record"));
        assert_eq!(web["spec"]["memoryMib"], 4 + self.round % 2, "{when}: {web}");
        assert!(host.life("web").is_some(), "{when}: {web}");
        assert_eq!(host.life("guest").is_some(), self.has_guest(), "{when}");
        let vms = 2 + usize::from(self.has_guest());
        assert_eq!(host.processes().len(), vms, "{when}: a VMM for each VM");
        assert_eq!(self.net.taps().lines().count(), vms, "{when}: a tap for each VM");
        if !self.has_guest() {
            assert_eq!(host.leftovers("guest"), Vec::<std::path::PathBuf>::new(), "{when}");
        }
    }
}

fn with_tap(name: &str) -> String {
    format!("{}  networkInterfaces: [{{name: eth0, bridge: br0}}]\n", manifest(name, Vmm::Firecracker))
}

/// How a process ended. One that hangs is killed.
///
/// std waits for a child of which it cannot read whether its exec failed, and so for as long as the VMM lives. The kernel has
/// no error for a read of that socket pair, so stead is killed there as if it had died of one.
fn ends(child: &mut Child) -> String {
    let start = Instant::now();
    let mut waits_since = None;
    while start.elapsed() < BOUND {
        if let Some(status) = child.try_wait().unwrap() {
            return status.to_string();
        }
        waits_since = if waits_for_a_child(child.id()) { waits_since.or(Some(Instant::now())) } else { None };
        if waits_since.is_some_and(|since| since.elapsed() > STD_WAITS) {
            child.kill().unwrap();
            return format!("{}: std waited for its child", child.wait().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    HANGS.to_owned()
}

fn waits_for_a_child(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let call = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
    let wait4 = format!("{} ", Sysno::wait4.id());
    threads.map(call).any(|call| call.starts_with(&wait4))
}

/// How often an undisturbed pass makes each call.
fn count_calls(troubled: &mut Troubled) -> BTreeMap<i64, u64> {
    let counts = Arc::new(Mutex::new(BTreeMap::new()));
    for _ in 0..2 {
        troubled.change();
        let shared = Arc::clone(&counts);
        troubled.pass("undisturbed", Calls::All, move |number| {
            *shared.lock().unwrap().entry(number).or_insert(0) += 1;
            Answer::GoOn
        });
        troubled.recovers("undisturbed");
    }
    let counts = counts.lock().unwrap();
    counts.iter().map(|(number, count)| (*number, (count / 2).max(1))).collect()
}

/// futex(2) has no error for a wakeup that is not given, and no program could do without one.
fn can_fail(number: i64) -> bool {
    number != i64::from(Sysno::futex.id())
}

fn name_of(number: i64) -> String {
    usize::try_from(number).ok().and_then(Sysno::new).map_or_else(|| number.to_string(), |call| call.to_string())
}

#[test]
fn trouble_at_any_system_call_touches_no_other_vm_and_is_made_good() {
    let each: Option<usize> = std::env::var("STEAD_SYSCALL_FAULTS").ok().map(|text| text.parse().unwrap());
    let mut troubled = Troubled::new();
    let mut counts = count_calls(&mut troubled);
    if let Ok(only) = std::env::var("STEAD_SYSCALL") {
        counts.retain(|number, _| name_of(*number) == only);
    }
    let each_kind = counts.iter().map(|(number, count)| format!("{} {count}", name_of(*number)));
    println!("{}", each_kind.collect::<Vec<_>>().join(", "));
    let mut random = Random::new(11);
    let (mut faults, mut hit, mut died) = (0, 0, 0);
    for (kind, (number, count)) in counts.iter().enumerate() {
        // In a short run one trouble a kind, each time another one.
        let possible = if can_fail(*number) { &TROUBLES[..] } else { &TROUBLES[..1] };
        let chosen = if each.is_some() { possible } else { &possible[kind % possible.len()..][..1] };
        for trouble in chosen.iter().flat_map(|trouble| std::iter::repeat_n(*trouble, each.unwrap_or(1))) {
            let at = 1 + random.below(*count);
            let reached = Arc::new(Mutex::new(0));
            let shared = Arc::clone(&reached);
            troubled.change();
            let when = format!("call {at} of {}: {trouble:?}", name_of(*number));
            let said = troubled.pass(&when, Calls::One(*number), move |_| {
                let mut calls = shared.lock().unwrap();
                *calls += 1;
                if *calls == at { trouble } else { Answer::GoOn }
            });
            let when = format!("{when}\n{said}");
            troubled.recovers(&when);
            faults += 1;
            hit += usize::from(*reached.lock().unwrap() >= at);
            let is_dead = said.starts_with("signal") || said.contains("panicked");
            if is_dead && trouble != Answer::Kill {
                println!("stead died: {when}");
                died += 1;
            }
        }
    }
    let total: u64 = counts.values().sum();
    println!(
        "{} kinds of calls, {total} calls a pass; {faults} faults, {hit} reached; {died} times stead died of one",
        counts.len()
    );
    assert!(hit * 10 > faults * 7, "too few of the faults were reached");
}

#[test]
fn a_netlink_socket_that_breaks_hides_no_tap() {
    let mut troubled = Troubled::new();
    let sends = count_calls(&mut troubled)[&i64::from(Sysno::sendto.id())];
    for at in 1..=sends {
        troubled.change();
        let mut calls = 0;
        let when = format!("send {at} of {sends}");
        let said = troubled.pass(&when, Calls::One(i64::from(Sysno::sendto.id())), move |_| {
            calls += 1;
            if calls == at { Answer::Fail(ENOMEM) } else { Answer::GoOn }
        });
        troubled.recovers(&format!("{when}\n{said}"));
    }
    println!("{sends} sends");
}
