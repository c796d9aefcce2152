//! `stead doctor`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::in_full;
use super::table::one_line;
use super::term::Stream;
use super::{CliError, Context, Exit, parts, view};
use crate::config::{Access, Configured, Settings, Source, SourceKind, open_state};
use crate::control::{Reply, Request, ask};
use crate::doctor::{Daemon, Finding, GitLook, Manifests, Needs, Refused, State, StateLook, Subject, examine};
use crate::host::linux::checkup;
use crate::host::{HostOps, LockProbe};
use crate::names::{Layout, VmName};
use crate::reconcile::{ReconcileError, Stead, declared, sync_state};
use crate::state::{
    Flaw, StoredSpec, parse_disk_record, parse_gates, parse_handles, parse_host, parse_ledger, parse_orphans,
    parse_sync,
};
use crate::sync::{GitSource, Signed};

/// How long the running stead may take to say who it is.
const ANSWER_BOUND: Duration = Duration::from_secs(5);

/// Arguments of `stead doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead doctor                     what is wrong with this host, and how to mend it
  stead doctor --all               every check, also those that found nothing wrong
  stead doctor -o json             for programs: every check with its state, what was found, why it matters, what to do

Changes nothing: no file is made, and no lock is kept. What is needed is read off the manifests: a host without device-mapper is
fine as long as no disk asks for it. Run it as stead runs, that is as the same user with the same flags and variables.

Exit status: 0 nothing failed (warnings are no failures); 2 something did.")]
pub struct Args {
    /// Show every check
    #[arg(short, long)]
    all: bool,

    /// How to show them
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let findings = examine(&look(context)?);
    match args.output {
        Output::Json => context.term.print(view::to_json(&report(&findings))?)?,
        Output::Text => context.term.print(text(&findings, args.all, context.term.out))?,
    }
    let has_failed = findings.iter().any(|finding| finding.state == State::Failure);
    Ok(if has_failed { Exit::Unconverged } else { Exit::Converged })
}

/// Looks at everything. What cannot be looked at is a finding, and keeps nothing else from being looked at.
fn look(context: &Context) -> Result<Subject, CliError> {
    let environment = crate::config::Environment::current();
    let (configuration, settings) = match context.flags.settings(&environment) {
        Ok(settings) => (Ok(()), settings),
        // Without it, all else is as if there were none.
        Err(error) => (Err(refused(&error)), context.flags.settings_by(Configured::default(), &environment)?),
    };
    let is_readable = configuration.is_ok();
    let configuration = configuration.and_then(|()| match &settings.push {
        Some(push) => push.check().map_err(|error| refused(&CliError::Reconcile(ReconcileError::Push(error.into())))),
        None => Ok(()),
    });
    let host = parts::host(&settings)?;
    let layout = open_state(&settings, Access::Reader).map_err(CliError::State);
    let known: &[Source] = if is_readable { &settings.sources } else { &[] };
    let folders = known.iter().filter_map(|source| match &source.kind {
        SourceKind::Folder(path) => Some((path.clone(), checkup::folder(path))),
        SourceKind::Git(_) => None,
    });
    let folders = folders.collect();
    let git: Vec<&GitSource> = known.iter().filter_map(git_of).collect();
    let git = (!git.is_empty()).then(|| look_at_git(&git));
    let (state, daemon, manifests, unsynced) = match layout {
        Err(error) => (Err(refused(&error)), Daemon::NotAsked, None, Vec::new()),
        Ok(layout) => {
            let state = look_at_state(&*host, &layout, &settings);
            let daemon = look_at_daemon(&*host, &layout);
            let stead = Stead { settings: settings.clone(), layout, host: Arc::clone(&host) }.knowing_its_host(false);
            let manifests = is_readable.then(|| Manifests::of(&declared(&stead)));
            let unsynced = known.iter().filter_map(|source| Some((source.name.clone(), trouble(&stead, source)?)));
            (Ok(state), daemon, manifests, unsynced.collect())
        }
    };
    let named = manifests.iter().flat_map(|manifests: &Manifests| manifests.bridges.keys());
    let bridges = named.map(|name| (name.clone(), checkup::bridge(name))).collect();
    Ok(Subject {
        version: env!("CARGO_PKG_VERSION"),
        configuration,
        host: checkup::look(&*host),
        state,
        daemon,
        folders,
        unsynced,
        manifests,
        bridges,
        git,
    })
}

fn refused(error: &CliError) -> Refused {
    Refused { why: in_full(error), mend: error.hint() }
}

fn git_of(source: &Source) -> Option<&GitSource> {
    match &source.kind {
        SourceKind::Git(git) => Some(git),
        SourceKind::Folder(_) => None,
    }
}

/// Why a git source is not followed, if it is not and should be.
fn trouble(stead: &Stead, source: &Source) -> Option<String> {
    let git = git_of(source).filter(|git| !git.suspend)?;
    match sync_state(stead, &source.name, git) {
        Ok(state) if state.pinned => None,
        Ok(state) => state.failure.map(|failure| format!("{}: {}", failure.reason, one_line(&failure.message))),
        Err(error) => Some(format!("{}: {}", error.reason(), error.one_line())),
    }
}

fn look_at_git(sources: &[&GitSource]) -> GitLook {
    let signers = |ssh: bool| {
        let asks = |source: &&&GitSource| {
            source.verify.as_ref().is_some_and(|verify| {
                matches!(verify.of, Signed::Head | Signed::Tag) && verify.allowed_signers.is_some() == ssh
            })
        };
        sources.iter().find(asks).map(|source| source.url.to_string())
    };
    let by_ssh = sources.iter().find(|source| source.url.protocol() == "ssh").map(|source| source.url.to_string());
    let wanted = [
        ("ssh", by_ssh, "is asked through it"),
        ("ssh-keygen", signers(true), "is to be signed by SSH keys"),
        ("gpg", signers(false), "is to be signed by OpenPGP keys"),
    ];
    let missing = wanted.into_iter().filter_map(|(program, url, what)| {
        let url = url.filter(|_| !checkup::has_program(program))?;
        Some((program, format!("{url} {what}")))
    });
    GitLook {
        version: checkup::program_version("git").map_err(|error| error.to_string()),
        missing: missing.collect(),
        ssh_signatures: signers(true).is_some(),
    }
}

fn look_at_daemon(host: &dyn HostOps, layout: &Layout) -> Daemon {
    match ask(layout, &Request::Ping, ANSWER_BOUND) {
        Ok(None) => Daemon::None { locked: matches!(host.probe_lock(&layout.lock()), LockProbe::Held(_)) },
        Ok(Some(Reply::Pong { version, pid })) => {
            Daemon::Answers { version, pid, open_files: checkup::open_files_of(pid) }
        }
        Ok(Some(other)) => {
            Daemon::Fails(format!("whoever listens on {} answers {other:?}", layout.control_socket().display()))
        }
        Err(error) => Daemon::Fails(in_full(&CliError::Control(error))),
    }
}

fn look_at_state(host: &dyn HostOps, layout: &Layout, settings: &Settings) -> StateLook {
    let mut seen = StateLook {
        folder: layout.state_dir.clone(),
        exists: host.exists(&layout.state_dir).unwrap_or(false),
        room: Some(checkup::room(&layout.state_dir).map_err(|error| error.to_string())),
        ..StateLook::default()
    };
    let (boot, mut held) = (host.now().boot_id, Needs::default());
    let mut reader = Reader { host, seen: &mut seen };
    reader.read(&layout.gates(), |bytes| parse_gates(bytes).map(drop));
    reader.read(&layout.host(), |bytes| parse_host(bytes).map(drop));
    reader.read(&layout.orphans(), |bytes| parse_orphans(bytes).map(drop));
    reader.list(&layout.state_dir);
    for source in settings.sources.iter().filter(|source| git_of(source).is_some()) {
        let folder = layout.source(&source.name.0);
        reader.read(&folder.join("sync.json"), |bytes| parse_sync(bytes).map(drop));
        reader.list(&folder);
    }
    for name in reader.list(&layout.vms()).iter().filter_map(|name| VmName::new(name.clone()).ok()) {
        reader.seen.vms += 1;
        let uid = layout.uid(&name);
        reader.read(&layout.handles(&name), |bytes| {
            let handles = parse_handles(bytes, &name, uid)?;
            let spec = handles.spec.as_ref().filter(|_| handles.boot_id == boot && handles.pid.is_some());
            if let Some(Ok(spec)) = spec.map(StoredSpec::read) {
                held.add(&spec);
            }
            Ok(())
        });
        reader.read(&layout.ledger(&name), |bytes| parse_ledger(bytes, &name, uid).map(drop));
        reader.list(&layout.vm_dir(&name));
        for file in reader.list(&layout.disks(&name)) {
            let disk = file.strip_suffix(".json").and_then(|disk| VmName::new(disk).ok());
            if let Some(disk) = disk {
                let path = layout.disk_record(&name, &disk);
                reader.read(&path, |bytes| parse_disk_record(bytes, &name, uid, &disk).map(drop));
            }
        }
    }
    seen.held = held;
    seen
}

/// Reads stead's own files, and notes what is wrong with them.
struct Reader<'a> {
    host: &'a dyn HostOps,
    seen: &'a mut StateLook,
}

impl Reader<'_> {
    fn read(&mut self, path: &Path, parse: impl FnOnce(&[u8]) -> Result<(), Flaw>) {
        match self.host.read_state_file(path) {
            Ok(None) => return,
            Ok(Some(bytes)) => {
                if let Err(flaw) = parse(&bytes) {
                    self.seen.flaws.push(format!("{}: {flaw}", path.display()));
                }
            }
            Err(error) => self.seen.flaws.push(error.to_string()),
        }
        let written = self.host.file_stamp(path).ok().flatten();
        let written = written.and_then(|stamp| Timestamp::from_nanosecond(stamp.mtime_ns).ok());
        self.seen.latest = self.seen.latest.max(written);
    }

    /// What is in a folder; files that were set aside are noted.
    fn list(&mut self, folder: &Path) -> Vec<String> {
        let names = self.host.list_folder(folder).unwrap_or_else(|error| {
            self.seen.flaws.push(format!("{}: {error}", folder.display()));
            Vec::new()
        });
        let aside = names.iter().filter(|name| name.contains(".json.corrupt-"));
        self.seen.aside.extend(aside.map(|name| folder.join(name)).collect::<Vec<PathBuf>>());
        names
    }
}

/// For programs.
fn report(findings: &[Finding]) -> Value {
    let count = |state: State| findings.iter().filter(|finding| finding.state == state).count();
    let check = |finding: &Finding| {
        json!({
            "name": finding.check.name(),
            "state": finding.state,
            "found": finding.found,
            "why": finding.check.why(),
            "mend": finding.mend,
        })
    };
    json!({
        "apiVersion": "stead.dev/v1alpha1",
        "kind": "HostReport",
        "version": env!("CARGO_PKG_VERSION"),
        "failures": count(State::Failure),
        "warnings": count(State::Warning),
        "checks": findings.iter().map(check).collect::<Vec<_>>(),
    })
}

/// For people: what is wrong first, and the worst of it at the end, where the eye is.
fn text(findings: &[Finding], all: bool, out: Stream) -> String {
    let mut shown: Vec<&Finding> = findings.iter().filter(|finding| all || finding.state >= State::Warning).collect();
    shown.sort_by_key(|finding| finding.state);
    let mut text = String::new();
    for finding in shown {
        let state = format!("{:8}", finding.state);
        let state = match finding.state {
            State::Ok => out.good(&state),
            State::Skipped => state,
            State::Warning => out.careful(&state),
            State::Failure => out.bad(&state),
        };
        text += &format!("{state} {}: {}\n", out.strong(finding.check.name()), one_line(&finding.found));
        if let Some(mend) = &finding.mend {
            text += &format!("         why: {}\n         do:  {}\n", finding.check.why(), one_line(mend));
        }
    }
    let count = |state: State| findings.iter().filter(|finding| finding.state == state).count();
    let (failures, warnings) = (count(State::Failure), count(State::Warning));
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    text + &format!(
        "{}: {}, {}, {} ok, {} skipped\n",
        plural(findings.len(), "check"),
        plural(failures, "failure"),
        plural(warnings, "warning"),
        count(State::Ok),
        count(State::Skipped),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Check, samples};

    fn findings() -> Vec<Finding> {
        let mut subject = samples::subject();
        subject.host.kernel = "5.4.0".to_owned();
        subject.host.confined = Some("docker\x1b[2J (enforce)".to_owned());
        examine(&subject)
    }

    #[test]
    fn people_see_what_is_wrong_and_with_all_everything() {
        let text = super::text(&findings(), false, Stream::default());
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("warning  confinement: ") && lines[3].starts_with("failure  kernel: Linux 5.4.0"),
            "{text}"
        );
        assert!(lines[4].starts_with("         why: ") && lines[5].starts_with("         do:  update it"), "{text}");
        assert_eq!(lines[6], "23 checks: 1 failure, 1 warning, 21 ok, 0 skipped");
        assert!(!text.contains('\x1b'), "text from elsewhere cannot move the cursor");
        let all = super::text(&findings(), true, Stream::default());
        assert!(Check::ALL.iter().all(|check| all.contains(&format!(" {}: ", check.name()))), "{all}");
    }

    #[test]
    fn programs_get_every_check_with_all_of_it() {
        let report = report(&findings());
        assert_eq!((&report["failures"], &report["warnings"]), (&json!(1), &json!(1)));
        let checks = report["checks"].as_array().unwrap();
        assert_eq!(checks.len(), Check::ALL.len());
        let kernel = checks.iter().find(|check| check["name"] == "kernel").unwrap();
        assert_eq!(kernel["state"], "failure");
        assert!(checks.iter().all(|check| check["why"].is_string() && check["found"].is_string()));
        let has_mend = |check: &&Value| check["mend"].is_string();
        assert_eq!(checks.iter().filter(has_mend).count(), 2);
    }
}
