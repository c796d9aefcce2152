//! The real binary, in what it does without a VM.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

mod prepared;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prepared::home::Home;
use stead::control::{self, Handler, Reply, Request};

/// Longest wait for anything here; reached only by a failure.
const BOUND: Duration = Duration::from_secs(20);

const COMMANDS: [&str; 16] = [
    "doctor",
    "explain",
    "run",
    "reconcile",
    "plan",
    "get",
    "top",
    "describe",
    "logs",
    "restart",
    "delete",
    "adopt",
    "approve",
    "validate",
    "schema",
    "completions",
];

impl Home {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.under(&[], args);
        command.env_remove("NO_COLOR").env("TERM", "xterm");
        command
    }

    fn stead(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn help_of_every_command_has_examples() {
    let home = Home::new();
    let whole = stdout(&home.stead(&["--help"]));
    for command in COMMANDS {
        assert!(whole.contains(&format!("\n  {command} ")), "{command} is missing in:\n{whole}");
        let help = home.stead(&[command, "--help"]);
        assert_eq!(code(&help), 0);
        let help = stdout(&help);
        assert!(help.contains("Examples:\n  stead "), "{help}");
        assert!(help.contains("STEAD_STATE_DIR"), "{help}");
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    let version = Home::new().stead(&["--version"]);
    assert_eq!((code(&version), stdout(&version)), (0, format!("stead {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn completions_name_every_command_for_every_shell() {
    let home = Home::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = home.stead(&["completions", shell]);
        assert_eq!(code(&script), 0);
        let script = stdout(&script);
        assert!(COMMANDS.iter().all(|command| script.contains(command)), "{shell}");
    }
}

#[test]
fn a_bad_command_line_never_exits_with_the_status_of_a_failed_vm() {
    let home = Home::new();
    let lines: [&[&str]; 11] = [
        &[],
        &["frobnicate"],
        &["get", "--frobnicate"],
        &["get", "-o", "xml"],
        &["get", "../etc"],
        &["reconcile"],
        &["reconcile", "--once", "--timeout", "5"],
        &["get", "--log-limit", "4M"],
        &["get", "--parallel", "0"],
        &["validate"],
        &["get", "--log-level", "stead=loud"],
    ];
    for line in lines {
        let output = home.stead(line);
        assert_eq!(code(&output), 78, "{line:?}");
        assert!(stdout(&output).is_empty() && !output.stderr.is_empty(), "{line:?}");
    }
    let environment = home.command(&["get"]).env("STEAD_RESYNC", "soon").output().unwrap();
    assert_eq!(code(&environment), 78);
    assert!(stderr(&environment).contains("a duration is numbers with units"), "{}", stderr(&environment));
}

#[test]
fn looking_at_a_state_that_is_not_there_finds_nothing_and_makes_nothing() {
    let home = Home::new();
    fs::remove_dir(home.path("manifests")).unwrap();
    for (args, out) in [
        (&["get"][..], ""),
        (&["get", "-o", "name"], ""),
        (&["get", "-o", "wide"], ""),
        (&["get", "-o", "yaml"], "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachineList\nitems: []\n"),
    ] {
        let output = home.stead(args);
        assert_eq!((code(&output), stdout(&output).as_str()), (0, out), "{}", stderr(&output));
    }
    for command in ["get", "describe", "logs"] {
        let output = home.stead(&[command, "web"]);
        assert_eq!(code(&output), 1);
        assert!(stderr(&output).starts_with("error: there is no VM \"web\" in "), "{}", stderr(&output));
    }
    assert_eq!(fs::read_dir(home.0.path()).unwrap().count(), 0);
}

#[test]
fn a_name_that_is_nearly_right_gets_a_hint() {
    let (home, layout) = Home::new().with_state();
    fs::create_dir(layout.vm_dir(&"database".parse().unwrap())).unwrap();
    let output = home.stead(&["logs", "databsae"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("hint: is it \"database\"?"), "{}", stderr(&output));
}

#[test]
fn a_state_that_others_can_write_is_refused_with_what_to_do() {
    let (home, layout) = Home::new().with_state();
    fs::set_permissions(&layout.state_dir, fs::Permissions::from_mode(0o777)).unwrap();
    for args in [&["get"][..], &["plan"], &["reconcile", "--once"], &["run"], &["restart", "web"], &["logs", "web"]] {
        let output = home.stead(args);
        assert_eq!(code(&output), 78, "{args:?}");
        let text = stderr(&output);
        assert!(text.contains("can be written by others (mode 0777)"), "{text}");
        assert!(text.contains("hint: ") && text.contains("chmod go-w "), "{text}");
    }
}

#[test]
fn another_run_folder_is_an_error_that_names_the_right_one() {
    let (home, layout) = Home::new().with_state();
    let output = home.command(&["reconcile", "--once"]).env("STEAD_RUN_DIR", home.path("other")).output().unwrap();
    assert_eq!(code(&output), 78);
    let right = format!("STEAD_RUN_DIR={}", layout.run_dir.parent().unwrap().display());
    assert!(stderr(&output).contains(&right), "{}", stderr(&output));
    assert!(!home.path("other").exists());
}

#[test]
fn two_actors_on_one_state_the_second_says_so_and_exits_75() {
    let (home, layout) = Home::new().with_state();
    let mut lock = File::create(layout.lock()).unwrap();
    lock.lock().unwrap();
    lock.write_all(b"4711 run\n").unwrap();
    for args in [&["reconcile", "--once"][..], &["run"], &["restart", "web"]] {
        let began = Instant::now();
        let output = home.stead(args);
        assert_eq!(code(&output), 75, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error: stead run (pid 4711) works on "), "{}", stderr(&output));
        assert!(began.elapsed() >= Duration::from_secs(1), "it is tried for a second");
    }
}

#[test]
fn a_command_that_waits_for_the_lock_ends_when_it_is_interrupted() {
    use rustix::process::{Pid, Signal, kill_process};
    let (home, layout) = Home::new().with_state();
    for (index, args) in [&["reconcile", "--once"][..], &["run"], &["restart", "web"]].into_iter().enumerate() {
        for signal in [Signal::INT, Signal::TERM] {
            let lock = File::create(layout.lock()).unwrap();
            lock.lock().unwrap();
            let mut child = home.command(args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            // It has the file open once it waits; before that it is cancelled at another point, each time.
            let opened = || {
                let files = std::fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten().flatten();
                files.filter_map(|file| file.path().read_link().ok()).any(|file| file == layout.lock())
            };
            let deadline = Instant::now() + Duration::from_secs(30);
            while index > 0 && !opened() {
                assert!(Instant::now() < deadline, "{args:?} never gets to the lock");
                std::thread::yield_now();
            }
            let began = Instant::now();
            kill_process(Pid::from_child(&child), signal).unwrap();
            let status = child.wait().unwrap();
            assert!(!status.success(), "{args:?}: {status}");
            assert!(began.elapsed() < Duration::from_millis(900), "{args:?}: it waits on: {:?}", began.elapsed());
            drop(lock);
            File::open(layout.lock()).unwrap().try_lock().unwrap_or_else(|error| panic!("{args:?}: {error}"));
        }
    }
}

#[test]
fn colours_are_only_where_they_are_wanted() {
    let home = Home::new();
    let colored = |command: &mut Command| stderr(&command.output().unwrap()).contains('\x1b');
    assert!(!colored(&mut home.command(&["logs", "web"])), "no terminal");
    assert!(colored(&mut home.command(&["logs", "web", "--color", "always"])));
    assert!(!colored(home.command(&["logs", "web"]).env("NO_COLOR", "1")));
    assert!(!colored(home.command(&["logs", "web"]).env("STEAD_COLOR", "never")));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (home, layout) = Home::new().with_state();
    let web = "web".parse().unwrap();
    fs::create_dir(layout.vm_dir(&web)).unwrap();
    fs::write(layout.console_log(&web), "line\n".repeat(1 << 20)).unwrap();
    for args in [&["logs", "web"][..], &["logs", "-f", "web"], &["completions", "bash"]] {
        let mut child = home.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        // Dropping the reader closes the pipe.
        BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((code(&output), stderr(&output).as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn logs_follow_through_a_trim_and_end_in_good_order() {
    let (home, layout) = Home::new().with_state();
    let web = "web".parse().unwrap();
    fs::create_dir(layout.vm_dir(&web)).unwrap();
    let path = layout.console_log(&web);
    append(&path, "one\ntwo\nbooting, version 6.12.1 of the kernel\n");
    let mut child = home.command(&["logs", "-f", "-n", "1", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "booting, version 6.12.1 of the kernel");
    append(&path, "\x1b[2Jas it is\n");
    assert_eq!(lines.next().unwrap(), "\x1b[2Jas it is", "no terminal, so its bytes go as they are");
    // As trimming does it: the tail is written over the front, and what follows is cut off.
    let tail = "version 6.12.1 of the kernel\n\x1b[2Jas it is\nafter the trim\n";
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, tail.as_bytes(), 0).unwrap();
    file.set_len(tail.len() as u64).unwrap();
    assert_eq!(lines.next().unwrap(), "after the trim");
    fs::rename(&path, path.with_extension("old")).unwrap();
    append(&path, "a new file\n");
    assert_eq!(lines.next().unwrap(), "a new file");

    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let end = Instant::now() + BOUND;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            None => panic!("SIGINT did not end it"),
        }
    };
    assert_eq!(status.code(), Some(0));
}

/// Answers as a running stead would.
struct Fake;

impl Handler for Fake {
    async fn handle(&self, request: Request) -> Reply {
        match request {
            Request::Restart { name } => Reply::Accepted { message: format!("{name} will be restarted") },
            other => Reply::Refused { message: format!("not {other:?}"), hint: Some("ask later".into()) },
        }
    }
}

#[test]
fn acting_commands_ask_the_stead_that_runs() {
    let (home, layout) = Home::new().with_state();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(async { control::bind(&layout) }).unwrap();
    std::thread::spawn(move || runtime.block_on(control::serve(listener, Arc::new(Fake))));

    let accepted = home.stead(&["restart", "web"]);
    assert_eq!((code(&accepted), stdout(&accepted).as_str()), (0, "web will be restarted\n"));
    let refused = home.stead(&["approve", "abc"]);
    assert_eq!(code(&refused), 1);
    assert_eq!(stderr(&refused), "error: not Approve { digest: \"abc\" }\nhint: ask later\n");
    // A relative folder is made absolute: the running stead has another working directory.
    let adopt = home.command(&["adopt", "state"]).current_dir(home.path("")).output().unwrap();
    assert!(stderr(&adopt).contains(&format!("{:?}", layout.state_dir)), "{}", stderr(&adopt));
    assert!(!layout.lock().exists(), "who only asks takes no lock");
}
