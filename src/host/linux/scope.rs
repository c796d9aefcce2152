//! The scope of systemd's in which a state's VMs live, on a host where the hierarchy of cgroups is systemd's.
//!
//! Nobody but systemd makes cgroups in its hierarchy, except below a unit that it hands over with `Delegate=`
//! (<https://systemd.io/CGROUP_DELEGATION>). So one is asked for: a scope (systemd.scope(5)) is a unit for processes that somebody
//! else has started. It belongs to no service, and so it outlives the service that stead is, whose sandbox of devices and whose
//! end are none of its business.
//!
//! A scope begins with a process in it and ends with the last one. Between VMs there is none, and systemd would remove the
//! scope while the next VM's cgroup is made in it. So whoever makes cgroups there has a process of its own in it: a `cat` that
//! reads from a pipe, and ends when we do, whatever our end is. It sits in a cgroup of its own, since one that hands controllers
//! down holds no processes (cgroups(7), "no internal processes").

use std::fs;
use std::io::{self, PipeWriter, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{kernel_files, programs, spawn};
use crate::host::ProgramRequest;
use crate::names::{SCOPE_SUFFIX, SLICE};

/// The cgroup in a scope in which the process is that holds it. No VM has a dot in its name.
pub(super) const HOLDER: &str = "stead.holder";

/// What a scope is given. Controllers: those that limit a VM. Tasks: the limit that systemd puts on every unit (15 % of all
/// that there may be) is for services, and a VMM has a thread for each virtual CPU. Before: at shutdown stead ends first, so
/// that it does not start again what ends then.
const PROPERTIES: [&str; 3] =
    ["Delegate=cpu memory", "TasksMax=infinity", "Before=stead.service stead-reconcile.service"];

/// How long systemd may take for a scope, however often it is asked, and how long others wait for who asks it: less than
/// [`crate::wakeups::OVERDUE`], so that no VM's turn counts as stuck because systemd is.
const TIME: Duration = Duration::from_secs(20);
/// For so long its failure is everybody's answer: one VM after the other would wait for the same in vain.
const FRESH: Duration = Duration::from_secs(5);
/// How often systemd is asked whether it is done.
const PAUSE: Duration = Duration::from_millis(2);
/// How often it is tried again where a scope goes just when it was to be joined.
const TRIES: u32 = 5;

/// The scopes that are held.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    kept: Mutex<Kept>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    holder: Option<Holder>,
    /// Whether somebody asks for one now. Nobody holds the lock meanwhile.
    is_asking: bool,
    /// When it was last asked for in vain, and why.
    failed: Option<(Instant, String)>,
}

/// A process of ours in a scope.
#[derive(Debug)]
struct Holder {
    scope: String,
    child: Child,
    /// It ends once nobody holds this.
    _lifeline: PipeWriter,
}

/// Splits the path of a cgroup in the scope of a state: the scope's own, and what comes below it.
pub(super) fn scope_of(path: &str) -> Option<(&str, &str)> {
    let unit = path.strip_prefix(SLICE)?.strip_prefix('/')?;
    let (unit, below) = unit.split_once('/')?;
    unit.ends_with(SCOPE_SUFFIX).then(|| (&path[..SLICE.len() + 1 + unit.len()], below))
}

impl Scopes {
    /// Makes sure that there is this scope, and that it stays for as long as we live. That it cannot be had counts as a failed
    /// start of the VM, as all does that a host lacks: its back-off is what keeps many VMs from asking all the time.
    pub(super) fn keep(&self, root: &Path, scope: &str) -> io::Result<()> {
        self.keep_by(scope, TIME, |until| obtain(root, scope, until))
    }

    /// The same, by who can ask for it until a moment, within this time in all.
    fn keep_by(
        &self,
        scope: &str,
        time: Duration,
        ask: impl FnOnce(Instant) -> Result<Holder, String>,
    ) -> io::Result<()> {
        let unit = unit_of(scope);
        let failed =
            |why: &str| super::error(io::ErrorKind::Other, format!("systemd has no scope for VMs, {unit}: {why}"));
        let until = Instant::now() + time;
        let mut kept = self.lock();
        loop {
            if let Some(holder) = &mut kept.holder
                && holder.scope == scope
                && holder.child.try_wait()?.is_none()
            {
                return Ok(());
            }
            if let Some((_, why)) = kept.failed.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
                return Err(failed(why));
            }
            if !kept.is_asking {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(failed(&format!("it was asked for {time:?} ago, for another VM, and has not answered")));
            }
            kept = self.changed.wait_timeout(kept, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        kept.is_asking = true;
        drop(kept);
        let asked = ask(until);
        let mut kept = self.lock();
        kept.is_asking = false;
        let result = match asked {
            Ok(holder) => {
                (kept.holder, kept.failed) = (Some(holder), None);
                Ok(())
            }
            Err(why) => {
                let error = failed(&why);
                kept.failed = Some((Instant::now(), why));
                Err(error)
            }
        };
        drop(kept);
        self.changed.notify_all();
        result
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unit_of(scope: &str) -> &str {
    scope.rsplit('/').next().unwrap_or(scope)
}

/// Has a process of ours in the scope, by this moment. Why not, else.
fn obtain(root: &Path, scope: &str, until: Instant) -> Result<Holder, String> {
    let unit = unit_of(scope);
    let mut why = String::new();
    for _ in 0..TRIES {
        let joined = if is_populated(&root.join(scope)) {
            join(root, scope, unit, until)
        } else {
            make(root, scope, unit, until)
        };
        match joined {
            Ok(holder) => return Ok(holder),
            Err(error) => why = error.to_string(),
        }
        if Instant::now() >= until {
            break;
        }
        // It comes or goes just now.
        std::thread::sleep(PAUSE * 10);
    }
    Err(why)
}

/// Has systemd make the scope, with a process of ours as its first.
fn make(root: &Path, scope: &str, unit: &str, until: Instant) -> io::Result<Holder> {
    let mut systemd = program("systemd-run");
    systemd.args(["--scope", "--quiet", "--collect", "--description=microVMs of stead"]);
    systemd.args([format!("--unit={unit}"), format!("--slice={SLICE}")]);
    systemd.args(PROPERTIES.iter().flat_map(|property| ["-p", property]));
    systemd.args(["--", "cat"]);
    let mut holder = begin(systemd, scope)?;
    while !is_in(&holder.child, scope) {
        if holder.child.try_wait()?.is_some() {
            return Err(super::error(io::ErrorKind::Other, format!("systemd-run: {}", said(&mut holder.child))));
        }
        if Instant::now() > until {
            return Err(give_up(holder, &format!("systemd-run was not done within {TIME:?}")));
        }
        std::thread::sleep(PAUSE);
    }
    settle(root, holder)
}

/// Puts a process of ours into a scope that is there already.
fn join(root: &Path, scope: &str, unit: &str, until: Instant) -> io::Result<Holder> {
    let holder = settle(root, begin(program("cat"), scope)?)?;
    // The scope may have ended just before it was joined: then nobody takes care of this cgroup any more.
    let request = ProgramRequest {
        program: Path::new("systemctl"),
        arguments: ["is-active", "--quiet", unit].map(Into::into).to_vec(),
        environment: vec![("PATH".into(), spawn::PATH.into())],
        folder: Path::new("/"),
        input: &[],
        bound: until.saturating_duration_since(Instant::now()),
        file_max: 4096,
    };
    match programs::run(&request) {
        Ok(done) if done.success => Ok(holder),
        Ok(_) => Err(give_up(holder, "it has just ended")),
        Err(error) => Err(give_up(holder, &format!("systemctl: {error}"))),
    }
}

/// Moves it from where it is to the cgroup in the scope that is its own.
fn settle(root: &Path, holder: Holder) -> io::Result<Holder> {
    let folder = root.join(&holder.scope).join(HOLDER);
    let moved = match fs::create_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => super::cgroup::tell(&folder.join("cgroup.procs"), &holder.child.id().to_string()),
    };
    match moved {
        Ok(()) => Ok(holder),
        Err(error) => Err(give_up(holder, &format!("{}: {error}", folder.display()))),
    }
}

fn program(name: &str) -> Command {
    #[expect(clippy::disallowed_methods, reason = "this is the room that runs programs")]
    let mut command = Command::new(name);
    command.env_clear().env("PATH", spawn::PATH).current_dir("/");
    command
}

fn begin(mut command: Command, scope: &str) -> io::Result<Holder> {
    let (reader, lifeline) = io::pipe()?;
    // A group of its own: no terminal's Ctrl-C reaches it.
    command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let name = command.get_program().to_string_lossy().into_owned();
    let child = spawn::alone(|| command.spawn());
    let child = child.map_err(|error| super::error(error.kind(), format!("{name}: {error}")))?;
    Ok(Holder { scope: scope.to_owned(), child, _lifeline: lifeline })
}

/// Ends it, for this reason.
fn give_up(mut holder: Holder, why: &str) -> io::Error {
    // A child of ours that nobody has waited for.
    let _ = holder.child.kill();
    let _ = holder.child.wait();
    super::error(io::ErrorKind::Other, why)
}

/// What one that has ended had to say.
fn said(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut text);
    }
    text.trim().to_owned()
}

fn is_populated(cgroup: &Path) -> bool {
    let events = kernel_files::read_text(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Whether a process is in this cgroup and is a `cat` by now: until then systemd-run has not become it, and asks systemd.
fn is_in(child: &Child, scope: &str) -> bool {
    let read = |file: &str| kernel_files::read_text(format!("/proc/{}/{file}", child.id())).unwrap_or_default();
    let is_there = read("cgroup").lines().any(|line| line.strip_prefix("0::/") == Some(scope));
    is_there && read("comm").trim() == "cat"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_told_from_other_cgroups() {
        assert_eq!(scope_of("stead.slice/stead-1.scope/web"), Some(("stead.slice/stead-1.scope", "web")));
        assert_eq!(scope_of("stead.slice/stead-1.scope/"), Some(("stead.slice/stead-1.scope", "")));
        for other in
            ["stead/1/web", "stead.slice", "stead.slice/stead-1.scope", "stead.slice/a.service/web", "x/y.scope/z"]
        {
            assert_eq!(scope_of(other), None, "{other}");
        }
    }

    /// Where there is no systemd, or nothing that could be joined, the reason is told and nothing stays.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]
    fn a_scope_that_is_not_to_be_had_is_named() {
        let root = tempfile::tempdir().unwrap();
        let scope = "stead.slice/stead-none.scope";
        fs::create_dir_all(root.path().join(scope)).unwrap();
        fs::write(root.path().join(scope).join("cgroup.events"), "populated 1\n").unwrap();
        let error = join(root.path(), scope, "stead-none.scope", Instant::now() + TIME).unwrap_err();
        assert!(error.to_string().contains("stead.holder"), "{error}");
    }

    #[test]
    fn who_waits_for_who_asks_has_the_same_answer_and_gives_up_by_itself() {
        const SCOPE: &str = "stead.slice/stead-1.scope";
        fn nobody_asks(_: Instant) -> Result<Holder, String> {
            panic!("it is asked for already")
        }
        let scopes = Scopes::default();
        let (asking, is_asking) = std::sync::mpsc::channel();
        let (answer, answered) = std::sync::mpsc::channel();
        std::thread::scope(|threads| {
            let asks = move |_: Instant| {
                asking.send(()).unwrap();
                answered.recv().unwrap()
            };
            let first = threads.spawn(|| scopes.keep_by(SCOPE, TIME, asks));
            is_asking.recv().unwrap();
            let error = scopes.keep_by(SCOPE, Duration::from_millis(10), nobody_asks).unwrap_err().to_string();
            assert!(error.contains("for another VM"), "{error}");
            let waits = threads.spawn(|| scopes.keep_by(SCOPE, TIME, nobody_asks));
            answer.send(Err("it hangs".to_owned())).unwrap();
            for ended in [first.join().unwrap(), waits.join().unwrap()] {
                let error = ended.unwrap_err().to_string();
                assert!(error.contains("stead-1.scope: it hangs"), "{error}");
            }
        });
        // Later it is asked for anew.
        scopes.lock().failed.as_mut().unwrap().0 -= FRESH;
        scopes.keep_by(SCOPE, TIME, |_| Ok(begin(program("cat"), SCOPE).unwrap())).unwrap();
        scopes.keep_by(SCOPE, TIME, |_| panic!("it is held")).unwrap();
    }
}
