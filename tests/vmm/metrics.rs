//! A running stead, scraped and asked how it is.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::process::Signal;

use crate::bed::{Host, Vmm, bed, manifest, signal, wait};

/// A host whose stead serves metrics on a unix socket.
fn host() -> Host {
    let mut host = Host::new();
    let config = host.root.path().join("config.yaml");
    let socket = host.root.path().join("metrics.sock");
    let text = format!(
        "apiVersion: stead.dev/v1alpha1\nkind: Configuration\nmetrics: {{listen: 'unix:{}'}}\n",
        socket.display()
    );
    fs::write(&config, text).unwrap();
    host.set_env("STEAD_CONFIG", &config.display().to_string());
    host
}

/// What is answered to a GET: the status and the body.
fn get(host: &Host, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(host.root.path().join("metrics.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: stead\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn value<T: FromStr<Err: std::fmt::Debug>>(page: &str, series: &str) -> T {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in\n{page}")).parse().unwrap()
}

/// Waits until a time series has this value.
#[track_caller]
fn until(host: &Host, series: &str, expected: u64) {
    wait(&format!("{series} is {expected}; log:\n{}", host.log()), || {
        (value::<u64>(&get(host, "/metrics").1, series) == expected).then_some(())
    });
}

#[test]
fn a_vm_is_counted_through_its_start_its_crash_and_its_end_and_prometheus_understands() {
    let mut host = host();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.start_daemon();
    let first = host.running("web");
    until(&host, "stead_vms{phase=\"Running\"}", 1);
    until(&host, "stead_vm_conditions{type=\"Ready\",status=\"True\"}", 1);
    wait("it is ready", || (get(&host, "/readyz").0 == 200).then_some(()));
    assert_eq!(get(&host, "/healthz"), (200, "ok\n".to_owned()));
    let page = get(&host, "/metrics").1;
    assert_eq!(value::<u64>(&page, "stead_actions_total{action=\"start\",outcome=\"done\"}"), 1);
    assert_eq!(value::<u64>(&page, "stead_full_pass_duration_seconds_count{depth=\"thorough\"}"), 1);
    assert_eq!(value::<u64>(&page, "stead_source_complete{source=\"manifests\"}"), 1);
    let passed: f64 = value(&page, "stead_last_full_pass_timestamp_seconds{depth=\"thorough\"}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 120.0..=now + 1.0).contains(&passed), "{passed} is not just before {now}");

    signal(first.pid, Signal::KILL);
    let second = wait("a second life", || host.life("web").filter(|life| life.incarnation == 2));
    until(&host, "stead_vm_restarts_total", 1);
    until(&host, "stead_actions_total{action=\"start\",outcome=\"done\"}", 2);
    assert!(value::<u64>(&get(&host, "/metrics").1, "stead_wakeups_total{reason=\"Exited\"}") >= 1);

    host.apply("bad.yaml", "kind: [\n");
    until(&host, "stead_manifest_problems", 1);
    until(&host, "stead_source_complete{source=\"manifests\"}", 0);
    host.remove("bad.yaml");
    until(&host, "stead_manifest_problems", 0);

    host.daemon_signal(Signal::HUP);
    until(&host, "stead_full_pass_duration_seconds_count{depth=\"thorough\"}", 2);
    host.remove("web.yaml");
    host.gone("web", &second);
    until(&host, "stead_vms{phase=\"Running\"}", 0);

    let page = get(&host, "/metrics").1;
    let mut promtool = Command::new(bed("bin/promtool"));
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().unwrap();
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(host.stop_daemon(), Some(0));
    assert!(!host.root.path().join("metrics.sock").exists(), "its socket goes with it");
}

#[test]
fn a_loop_that_hangs_is_told_of_and_metrics_are_served_all_the_same() {
    let mut host = host();
    host.start_daemon();
    wait("it is ready", || (get(&host, "/readyz").0 == 200).then_some(()));
    // The loop is the first thread of the process. It alone stops, wherever it is, as in a call that does not return.
    let main = Pid::from_raw(i32::try_from(host.daemon_pid()).unwrap());
    ptrace::seize(main, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(main).unwrap();
    waitpid(main, None).unwrap();
    let began = Instant::now();
    for path in ["/healthz", "/readyz"] {
        let (code, why) = get(&host, path);
        assert!(code == 503 && why.contains("the control loop has not taken a turn"), "{code} {why}");
    }
    assert!(began.elapsed() >= Duration::from_secs(9), "a moment of patience for each");
    assert_eq!(get(&host, "/metrics").0, 200);
    ptrace::detach(main, None).unwrap();
    assert_eq!((get(&host, "/healthz").0, get(&host, "/readyz").0), (200, 200));
    assert_eq!(host.stop_daemon(), Some(0));
}

/// CPU time of a process so far, in clock ticks: fields 14 and 15 of /proc/PID/stat; and how often its threads were woken.
fn effort(pid: u32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let switches = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.map_or(0, |count| count.trim().parse().unwrap())
    });
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap(), switches.sum())
}

#[test]
fn who_scrapes_costs_little_and_who_does_not_nothing() {
    let mut host = host();
    for number in 0..20 {
        let name = format!("vm-{number}");
        host.apply(&format!("{name}.yaml"), &manifest(&name, Vmm::Firecracker));
    }
    host.start_daemon();
    until(&host, "stead_vms{phase=\"Running\"}", 20);
    wait("the first pass is through", || (get(&host, "/readyz").0 == 200).then_some(()));
    // Whatever follows a start has ended when nothing happens for a while.
    let pid = host.daemon_pid();
    let mut before = effort(pid);
    wait("it is at rest", || {
        std::thread::sleep(Duration::from_secs(2));
        let now = effort(pid);
        let is_at_rest = now.1 == before.1;
        before = now;
        is_at_rest.then_some(())
    });
    let began = Instant::now();
    for _ in 0..500 {
        assert_eq!(get(&host, "/metrics").0, 200);
    }
    let (ticks, _) = effort(pid);
    eprintln!("500 scrapes in {:?}, {} ticks of CPU", began.elapsed(), ticks - before.0);
    // A hundredth of a second each would be ten times more than it takes.
    assert!(ticks - before.0 < 500, "{} ticks for 500 scrapes", ticks - before.0);
}

#[test]
fn an_address_that_is_in_use_is_said_at_the_start() {
    let mut host = host();
    fs::write(host.root.path().join("metrics.sock"), "no socket").unwrap();
    host.start_daemon_unready();
    wait("it says so", || host.log().contains("cannot serve metrics on unix:").then_some(()));
    assert_eq!(host.daemon_exit(), Some(1));
}
