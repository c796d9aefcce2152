//! `stead top` in a real terminal, which is tmux's, on real VMs.

use std::path::PathBuf;
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::bed::{Host, Vmm, manifest, processes_with, signal, wait};

/// A shell in a terminal of its own, on a tmux server of its own.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// One of this size, with the host's environment, in which the shell waits to be typed to.
    fn new(host: &Host, columns: u16, rows: u16) -> Self {
        let terminal = Self { socket: host.root.path().join("tmux") };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let mut tmux = terminal.command();
        for (name, value) in host.stead(&[]).get_envs().filter_map(|(name, value)| Some((name, value?))) {
            tmux.env(name, value);
        }
        // Neither a file of the user's nor of the host's says what the shell does.
        tmux.env_remove("ENV").env_remove("TMUX").env("LC_ALL", "C.UTF-8");
        tmux.args(["-f", "/dev/null", "new-session", "-d", "-s", "top", "-x", &columns, "-y", &rows, "sh"]);
        assert!(tmux.status().unwrap().success());
        // What is typed is on the screen too, and is not taken for the prompt.
        terminal.type_line("PS1='ready''> '");
        terminal.is_ready();
        terminal
    }

    fn command(&self) -> Command {
        let mut tmux = Command::new("tmux");
        tmux.arg("-u").arg("-S").arg(&self.socket);
        tmux
    }

    fn tmux(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    fn ask(&self, format: &str) -> String {
        let output = self.tmux(&["display-message", "-p", "-t", "top", format]);
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn keys(&self, keys: &[&str]) {
        assert!(self.tmux(&[&["send-keys", "-t", "top"], keys].concat()).status.success());
    }

    fn type_line(&self, line: &str) {
        self.keys(&["-l", line]);
        self.keys(&["Enter"]);
    }

    fn resize(&self, columns: u16, rows: u16) {
        let (columns, rows) = (columns.to_string(), rows.to_string());
        assert!(self.tmux(&["resize-window", "-t", "top", "-x", &columns, "-y", &rows]).status.success());
    }

    /// What is on the screen.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p", "-t", "top"]).stdout).into_owned()
    }

    #[track_caller]
    fn until(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let what = format!("{what}, on {}", self.socket.display());
        let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait(&what, || {
                last = self.text();
                condition(&last).then(|| last.clone())
            })
        }));
        shown.unwrap_or_else(|_| panic!("{what}; the screen is:\n{last}"))
    }

    #[track_caller]
    fn shows(&self, text: &str) -> String {
        self.until(&format!("the screen shows {text:?}"), |screen| screen.contains(text))
    }

    /// The line of the screen that has this text.
    #[track_caller]
    fn line(&self, text: &str) -> String {
        self.shows(text).lines().find(|line| line.contains(text)).unwrap_or_default().to_owned()
    }

    /// Has `stead top` run, and waits until it draws. How the terminal was set before is written to a file.
    fn start(&self, host: &Host) {
        let root = host.root.path().display();
        // The folder among its arguments is what it is found by.
        self.type_line(&format!(
            "clear; stty -g >{root}/before; {} top --run-dir {root}/r; echo ended with $?",
            env!("CARGO_BIN_EXE_stead")
        ));
        self.shows("stead top");
        wait("the alternate screen", || (self.ask("#{alternate_on}") == "1").then_some(()));
    }

    #[track_caller]
    fn is_ready(&self) {
        self.until("the shell waits", |screen| screen.contains("ready>"));
    }

    fn pid(host: &Host) -> i32 {
        let of = |pid: &i32| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).nth(1) == Some(b"top".as_slice())
        };
        wait("stead top", || processes_with(&host.root.path().display().to_string()).into_iter().find(of))
    }

    /// That `stead top` has ended well, and the terminal is as it was.
    #[track_caller]
    fn is_given_back(&self, host: &Host) {
        self.shows("ended with 0");
        assert_eq!(self.ask("#{alternate_on} #{cursor_flag}"), "0 1");
        self.is_set_as_before(host);
    }

    #[track_caller]
    fn is_set_as_before(&self, host: &Host) {
        let root = host.root.path();
        self.type_line(&format!("stty -g >{}/after; echo stty done", root.display()));
        self.until("stty", |screen| screen.lines().any(|line| line.ends_with("stty done") && !line.contains("echo")));
        let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
        assert_eq!(read("before"), read("after"));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

fn with_vms(names: &[&str]) -> Host {
    let host = Host::new();
    for name in names {
        host.apply(&format!("{name}.yaml"), &manifest(name, Vmm::Firecracker));
    }
    host
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn real_vms_are_shown_at_every_size_and_the_terminal_is_given_back() {
    let mut host = with_vms(&["api", "db", "web"]);
    host.start_daemon();
    let life = host.running("web");
    let terminal = Terminal::new(&host, 80, 24);
    terminal.start(&host);
    let all = terminal.until("all three run and are measured", |screen| {
        screen.lines().filter(|line| line.contains("Running") && line.contains('%')).count() == 3
    });
    for expected in
        ["3 VMs", "3 Running", "NAME▼", "CPU", "MEMORY", "RESTARTS", "AGE", "CONDITIONS", "LAST EVENTS", "q quit"]
    {
        assert!(all.contains(expected), "{expected}:\n{all}");
    }
    assert!(terminal.line("LAST EVENTS").starts_with("  LAST"), "{all}");
    terminal.shows(&format!("pid {}", host.daemon_pid()));
    terminal.shows("Started");
    for (columns, rows) in [(120, 40), (40, 12), (20, 5), (9, 3), (160, 20), (80, 24)] {
        terminal.resize(columns, rows);
        let fits = |screen: &str| {
            let lines = || screen.lines().filter(|line| !line.trim().is_empty());
            // What is drawn for another size either does not fill this one or is cut off by it.
            let wide = lines().any(|line| line.contains("CONDITIONS"));
            let has_keys = lines().next_back().is_some_and(|line| line.contains("quit"));
            lines().any(|line| line.starts_with("> api")) && wide == (columns >= 80) && has_keys
        };
        let shown = terminal.until(&format!("a frame of {columns}x{rows}"), fits);
        assert!(shown.lines().count() <= usize::from(rows), "{shown}");
    }
    // Its end changes no file before stead has noticed: nobody is there to notice.
    host.kill_daemon();
    signal(life.pid, Signal::KILL);
    let dead = terminal.until("web is seen to be dead", |screen| {
        screen.lines().any(|line| line.contains("web") && line.contains("Dead"))
    });
    assert!(dead.contains("1 Dead"), "{dead}");
    terminal.shows("no stead run");
    terminal.keys(&["q"]);
    terminal.is_given_back(&host);
}

#[test]
fn vms_are_sorted_filtered_described_and_their_console_is_followed() {
    let mut host = with_vms(&["api", "web"]);
    host.start_daemon();
    host.running("api");
    let life = host.running("web");
    host.console_shows("web", "GUEST READY");
    let terminal = Terminal::new(&host, 80, 24);
    terminal.start(&host);
    terminal.shows("2 Running");
    let above = |screen: &str, one: &str, other: &str| {
        let at = |name: &str| screen.lines().position(|line| line.get(2..).is_some_and(|line| line.starts_with(name)));
        at(one).zip(at(other)).is_some_and(|(one, other)| one < other)
    };
    assert!(above(&terminal.text(), "api", "web"));
    terminal.keys(&["r"]);
    terminal.until("the other way round", |screen| screen.contains("NAME▲") && above(screen, "web", "api"));
    terminal.keys(&["r", "s", "s"]);
    terminal.shows("CPU▼");
    terminal.keys(&["/"]);
    terminal.keys(&["-l", "we"]);
    terminal.until("the filter", |screen| screen.contains("1 of them match \"we\"") && !screen.contains("> api"));
    terminal.keys(&["Enter", "d"]);
    terminal.shows("web: description");
    terminal.shows(&format!("PID:          {}", life.pid));
    terminal.keys(&["G"]);
    terminal.shows("Started");
    terminal.keys(&["Escape"]);
    terminal.shows("1 of them match");
    terminal.keys(&["l"]);
    terminal.shows("web: console");
    terminal.until("what the guest printed", |screen| screen.lines().any(|line| line.contains("GUEST READY")));
    // What it prints from now on, if it were to take the terminal over.
    let log = host.vm_dir("web").join("console.log");
    let mut console = std::fs::OpenOptions::new().append(true).open(log).unwrap();
    std::io::Write::write_all(&mut console, b"\x1b[2J\x1b]0;pwned\x07and more\n").unwrap();
    let shown = terminal.shows("^[[2J^[]0;pwned^Gand more");
    assert!(shown.contains("GUEST READY"), "{shown}");
    assert_ne!(terminal.ask("#{pane_title}"), "pwned");
    // A restart is seen by whoever looks at the list.
    terminal.keys(&["Escape"]);
    assert_eq!(host.run(&["restart", "web"]).status.code(), Some(0));
    let second = wait("a second life", || host.life("web").filter(|life| life.incarnation == 2));
    terminal.keys(&["d"]);
    terminal.shows(&format!("PID:          {}", second.pid));
    terminal.keys(&["Escape"]);
    terminal.shows("1 of them match");
    terminal.keys(&["Escape"]);
    terminal.until("both again", |screen| screen.contains("> web") && screen.contains("  api"));
    terminal.keys(&["Escape"]);
    terminal.is_given_back(&host);
}

#[test]
fn a_held_plan_is_approved_after_it_was_seen() {
    let names = ["a", "b", "c", "d"];
    let mut host = with_vms(&names);
    host.start_daemon();
    let lives = names.map(|name| host.running(name));
    let terminal = Terminal::new(&host, 80, 24);
    terminal.start(&host);
    terminal.shows("4 Running");
    terminal.keys(&["a"]);
    terminal.shows("No deletion waits for an approval.");
    terminal.keys(&["y", "Escape"]);
    for name in &names[..3] {
        host.remove(&format!("{name}.yaml"));
    }
    terminal.shows("3 Held");
    terminal.keys(&["a"]);
    let asked = terminal.shows("An approval DELETES 3 VMs");
    let plan = text(&host.run(&["plan"]));
    let digest = plan.split("stead approve ").nth(1).unwrap().split_whitespace().next().unwrap();
    assert!(asked.contains(&format!("Digest: {digest}")), "{asked}");
    for (name, life) in names.iter().zip(&lives).take(3) {
        assert!(asked.contains(&format!("- {name}  stops firecracker (pid {})", life.pid)), "{asked}");
    }
    // Whatever is not a yes is none.
    terminal.keys(&["Enter", "n"]);
    terminal.shows("3 Held");
    for (name, life) in names.iter().zip(&lives) {
        assert_eq!(host.life(name).as_ref(), Some(life), "{name} waits");
    }
    terminal.keys(&["a"]);
    terminal.shows("An approval DELETES 3 VMs");
    terminal.keys(&["y"]);
    for (name, life) in names.iter().zip(&lives).take(3) {
        host.gone(name, life);
    }
    let left = terminal.until("one VM is left", |screen| screen.contains("1 VM ") && screen.contains("1 Running"));
    assert!(left.contains("> d"), "{left}");
    assert_eq!(host.life("d").as_ref(), Some(&lives[3]));
    // With nobody to ask, nothing is done.
    host.apply("e.yaml", &manifest("e", Vmm::Firecracker));
    host.apply("f.yaml", &manifest("f", Vmm::Firecracker));
    for name in ["e", "f"] {
        host.running(name);
    }
    terminal.shows("3 Running");
    host.kill_daemon();
    for name in ["d", "e", "f"] {
        host.remove(&format!("{name}.yaml"));
    }
    terminal.keys(&["a"]);
    terminal.shows("An approval DELETES 3 VMs");
    terminal.keys(&["y"]);
    terminal.shows("Not approved: no `stead run` is at work");
    for name in ["d", "e", "f"] {
        assert!(host.life(name).is_some(), "{name} lives");
    }
    terminal.keys(&["C-c"]);
    terminal.is_given_back(&host);
}

#[test]
fn however_it_ends_or_stops_the_terminal_is_given_back() {
    let mut host = with_vms(&["web"]);
    host.once(0);
    let terminal = Terminal::new(&host, 80, 24);
    for ends in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        terminal.start(&host);
        terminal.shows("1 Running");
        signal(Terminal::pid(&host), ends);
        terminal.is_given_back(&host);
    }
    // By its key and by a signal: to the shell, and back.
    for by_key in [true, false] {
        terminal.start(&host);
        terminal.shows("1 Running");
        let pid = Terminal::pid(&host);
        if by_key {
            terminal.keys(&["C-z"]);
        } else {
            signal(pid, Signal::TSTP);
        }
        wait("the shell's screen", || (terminal.ask("#{alternate_on} #{cursor_flag}") == "0 1").then_some(()));
        terminal.shows("Stopped");
        terminal.type_line("fg");
        terminal.until("the VMs again", |screen| screen.contains("> web") && screen.contains("q quit"));
        assert_eq!(terminal.ask("#{alternate_on}"), "1");
        // Keys are heard as before: nothing is echoed, nothing waits for a line to end.
        terminal.keys(&["?"]);
        terminal.shows("Ctrl-Z");
        terminal.keys(&["q"]);
        terminal.is_ready();
        terminal.is_set_as_before(&host);
    }
    host.start_daemon();
}

#[test]
fn a_host_without_vms_says_so_and_shows_them_when_they_come() {
    let mut host = Host::new();
    let terminal = Terminal::new(&host, 80, 24);
    terminal.start(&host);
    terminal.shows("No VMs yet.");
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.start_daemon();
    host.running("web");
    terminal.until("web", |screen| screen.contains("> web") && screen.contains("1 Running"));
    terminal.keys(&["q"]);
    terminal.is_given_back(&host);
}

#[test]
fn without_a_terminal_it_says_what_to_use_and_once_prints_text() {
    let host = with_vms(&["api", "web"]);
    host.once(0);
    host.running("web");
    let refused = host.run(&["top"]);
    assert_eq!(refused.status.code(), Some(1));
    for expected in ["standard output is none", "stead get"] {
        assert!(text(&refused).contains(expected), "{}", text(&refused));
    }
    let once = host.run(&["top", "--once"]);
    assert_eq!((once.status.code(), once.stderr.len()), (Some(0), 0), "{}", text(&once));
    let shown = text(&once);
    let web = shown.lines().find(|line| line.contains("web")).unwrap();
    for expected in ["Running", "True", "%", "/4Mi"] {
        assert!(web.contains(expected), "{expected}:\n{shown}");
    }
    assert!(shown.contains("LAST EVENTS") && !shown.contains('\x1b'), "{shown}");
}
