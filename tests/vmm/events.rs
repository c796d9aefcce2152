//! What was done and what was held back, as `stead events` tells it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use rustix::process::Signal;
use serde_json::Value;

use crate::bed::{BOUND, Host, Vmm, manifest, signal, wait};

/// What `stead events -o json` prints.
fn events(host: &Host, arguments: &[&str]) -> Vec<Value> {
    let output = host.run(&[&["events", "-o", "json"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The actions among them, with how they ended.
fn actions(events: &[Value]) -> Vec<String> {
    let action = |event: &Value| Some(format!("{} {}", event["action"].as_str()?, event["outcome"].as_str()?));
    events.iter().filter_map(action).collect()
}

/// `stead events -f`, whose lines come as they are printed.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn start(host: &Host, arguments: &[&str]) -> Self {
        let mut command = host.stead(&[&["events", "-f"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    /// The next line that contains this.
    #[track_caller]
    fn until(&self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(BOUND) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{text:?} did not come; before it came:\n{}", seen.join("\n"))
                }
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_life_from_its_start_over_a_crash_to_its_end_is_told_line_by_line() {
    let mut host = Host::new();
    host.start_daemon();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    let first = host.running("web");
    let following = Following::start(&host, &["--vm", "web"]);
    assert!(following.until("Started").contains("running, pid"));

    signal(first.pid, Signal::KILL);
    let second = wait("a second life", || host.life("web").filter(|life| life.incarnation == 2));
    following.until("TornDown");
    following.until(&format!("running, pid {}", second.pid));
    host.remove("web.yaml");
    host.gone("web", &second);
    following.until("Deleted");

    let all = events(&host, &["--vm", "web"]);
    let done = actions(&all);
    // What comes between is told too, and is other tests' matter.
    let mut rest = done.iter();
    for expected in
        ["start done", "persist done", "teardown done", "start done", "persist done", "teardown done", "forget done"]
    {
        assert!(rest.any(|action| action == expected), "{expected} is missing, or out of order: {done:?}");
    }
    for event in all.iter().filter(|event| event["action"] == "start") {
        assert_eq!(event["source"]["name"], "manifests");
        assert_eq!((&event["source"]["path"], &event["source"]["line"]), (&"web.yaml".into(), &1.into()));
        assert_eq!(event["planDigest"].as_str().map(str::len), Some(12));
        assert!(event["durationMicros"].as_u64().is_some_and(|micros| micros > 0), "{event}");
    }
    assert!(all.is_sorted_by_key(|event| event["time"].as_str().unwrap().to_owned()), "{all:#?}");
    assert_eq!(events(&host, &["-n", "1"]), all[all.len() - 1..]);
    // Nobody but who runs stead reads it.
    let mode = fs::metadata(host.state().join("audit.jsonl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(host.stop_daemon(), Some(0));
}

#[test]
fn a_pass_of_cron_writes_what_it_did_and_a_pass_with_nothing_to_do_nothing() {
    let host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    let plan = host.run(&["plan", "-o", "json"]);
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    host.once(0);
    let before = events(&host, &[]);
    assert_eq!(before[0]["planDigest"], plan["vms"][0]["digest"], "what was planned is what was done");
    assert!(actions(&before).contains(&"start done".to_owned()), "{before:#?}");
    host.once(0);
    assert_eq!(events(&host, &[]), before);
}

#[test]
fn what_failed_and_what_is_held_is_told_once_with_its_reason() {
    let host = Host::new().with_env("STEAD_BACKOFF_INITIAL", "5m");
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker).replace("ctrlaltdel.elf", "no-such.elf"));
    host.once(2);
    host.once(2);
    let output = host.run(&["events", "--vm", "web"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let held: Vec<_> = text.lines().filter(|line| line.contains("Warning")).collect();
    assert_eq!(held.len(), 2, "{text}");
    assert!(held.iter().zip(["Failed", "Held"]).all(|(line, reason)| line.contains(reason)), "{text}");
    assert!(held.iter().all(|line| line.contains("no-such.elf")), "{text}");
    assert_eq!(host.run(&["events", "--vm", "db"]).stdout, b"");
}

/// What is written must not stand in the way of what is done.
#[test]
fn a_log_that_cannot_be_written_stops_no_action_and_is_told_of_once() {
    let mut host = Host::new();
    // In its place stands what cannot be appended to.
    fs::create_dir_all(host.state().join("audit.jsonl")).unwrap();
    fs::set_permissions(host.state(), fs::Permissions::from_mode(0o700)).unwrap();
    host.start_daemon();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    let life = host.running("web");
    host.remove("web.yaml");
    host.gone("web", &life);
    assert_eq!(host.log().matches("audit.jsonl cannot be written").count(), 1, "{}", host.log());
    fs::remove_dir(host.state().join("audit.jsonl")).unwrap();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.running("web");
    wait("it is written again", || (!events(&host, &["--vm", "web"]).is_empty()).then_some(()));
}

#[test]
fn the_log_is_bounded_and_followed_when_a_new_one_begins() {
    let mut host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    // As if it had grown to within a line of its bound: 8 MiB.
    let (log, before) = (host.state().join("audit.jsonl"), host.state().join("audit.jsonl.1"));
    let line = fs::read_to_string(&log).unwrap().lines().next().unwrap().replace("\"vm\":\"web\"", "\"vm\":\"old\"");
    let full = format!("{line}\n").repeat((8 << 20) / (line.len() + 1));
    fs::write(&log, &full).unwrap();

    let following = Following::start(&host, &["-n", "1"]);
    following.until("old");
    host.start_daemon();
    host.remove("web.yaml");
    following.until("Deleted");
    assert_eq!(fs::read(&before).unwrap().len(), full.len());
    assert!(fs::metadata(&log).unwrap().len() < 100_000);
    let last = events(&host, &["-n", "1000"]);
    assert_eq!((last.len(), &last[0]["vm"]), (1000, &"old".into()), "both files are read");
    assert_eq!(last[999]["action"], "forget");
}
