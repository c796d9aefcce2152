//! What is wrong with a host, and how to mend it. Pure: judges what was looked at, looks at nothing itself.

mod check;
mod host;
mod limits;
mod own;
#[cfg(test)]
pub(crate) mod samples;
mod subject;

pub use check::Check;
pub use subject::{Daemon, GitLook, Manifests, Needs, Refused, StateLook, Subject};

use std::fmt;

use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Nothing that was declared needs it, or it could not be looked at.
    Skipped,
    /// VMs run, and not as well as they could.
    Warning,
    /// Something that was declared cannot be.
    Failure,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failure => "failure",
        })
    }
}

/// How a check came out, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was checked.
    pub check: Check,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; always there where something is not as it should be.
    pub mend: Option<String>,
}

impl Finding {
    fn ok(check: Check, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), mend: None }
    }

    fn skipped(check: Check, found: impl Into<String>) -> Self {
        Self { check, state: State::Skipped, found: found.into(), mend: None }
    }

    fn bad(check: Check, state: State, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, state, found: found.into(), mend: Some(mend.into()) }
    }

    fn warning(check: Check, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::bad(check, State::Warning, found, mend)
    }

    fn failure(check: Check, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::bad(check, State::Failure, found, mend)
    }

    /// One finding of several troubles, as bad as the worst of them; `else_ok` where there is none.
    fn of_troubles(check: Check, troubles: Vec<Trouble>, else_ok: impl Into<String>) -> Self {
        let Some(state) = troubles.iter().map(|trouble| trouble.state).max() else {
            return Self::ok(check, else_ok);
        };
        let mut mends: Vec<String> = Vec::new();
        for trouble in &troubles {
            if !mends.contains(&trouble.mend) {
                mends.push(trouble.mend.clone());
            }
        }
        let found: Vec<String> = troubles.into_iter().map(|trouble| trouble.found).collect();
        Self::bad(check, state, found.join("; "), mends.join("; "))
    }
}

/// One thing that is not as it should be, of several that one check may find.
struct Trouble {
    state: State,
    found: String,
    mend: String,
}

impl Trouble {
    fn warning(found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { state: State::Warning, found: found.into(), mend: mend.into() }
    }

    fn failure(found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { state: State::Failure, found: found.into(), mend: mend.into() }
    }
}

/// Judges everything: a finding for each check, in their order.
pub fn examine(subject: &Subject) -> Vec<Finding> {
    let needs = subject.manifests.clone().unwrap_or_default();
    let held = subject.state.as_ref().map(|state| state.held).unwrap_or_default();
    let host = &subject.host;
    Check::ALL
        .into_iter()
        .map(|check| match check {
            Check::Configuration => own::configuration(&subject.configuration),
            Check::State => own::state(&subject.state),
            Check::Records => own::records(&subject.state),
            Check::Folders => own::folders(&subject.folders, host.user.id),
            Check::Sources => own::sources(&subject.unsynced, subject.git.is_some()),
            Check::Manifests => own::manifests(subject.manifests.as_ref()),
            Check::Daemon => own::daemon(&subject.daemon, subject.version),
            Check::Kernel => host::kernel(&host.kernel),
            Check::Kvm => host::kvm(host, &needs),
            Check::Firecracker => host::firecracker(host, &needs),
            Check::Qemu => host::qemu(host, &needs),
            Check::Tun => host::tun(host, &needs),
            Check::Bridges => host::bridges(&subject.bridges, &needs),
            Check::Loop => host::loops(host, &needs, held),
            Check::DeviceMapper => host::device_mapper(host, &needs),
            Check::Cgroups => host::cgroups(host),
            Check::Git => host::git(subject.git.as_ref()),
            Check::Space => limits::space(&subject.state),
            Check::Clock => limits::clock(&host.clock, subject.state.as_ref().ok().and_then(|state| state.latest)),
            Check::Inotify => limits::inotify(&host.inotify, &subject.folders, &subject.daemon),
            Check::OpenFiles => limits::open_files(host, &subject.daemon, vms(subject)),
            Check::Threads => limits::threads(host.threads, &needs, held),
            Check::Confinement => host::confinement(host.confined.as_deref()),
        })
        .collect()
}

/// How many VMs there are or will be.
fn vms(subject: &Subject) -> u64 {
    let declared = subject.manifests.as_ref().map_or(0, |manifests| manifests.vms);
    let recorded = subject.state.as_ref().map_or(0, |state| state.vms);
    declared.max(recorded) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_check_is_made_once_and_named_apart() {
        let findings = examine(&samples::subject());
        assert_eq!(findings.iter().map(|finding| finding.check).collect::<Vec<_>>(), Check::ALL);
        let names: BTreeSet<&str> = Check::ALL.iter().map(|check| check.name()).collect();
        assert_eq!(names.len(), Check::ALL.len());
        assert!(findings.iter().all(|finding| finding.state == State::Ok), "{findings:#?}");
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_do_and_all_of_it() {
        let troubles = || vec![Trouble::warning("a", "x"), Trouble::failure("b", "y"), Trouble::warning("c", "x")];
        let finding = Finding::of_troubles(Check::Bridges, troubles(), "fine");
        assert_eq!((finding.state, finding.found.as_str()), (State::Failure, "a; b; c"));
        assert_eq!(finding.mend.as_deref(), Some("x; y"));
        assert_eq!(Finding::of_troubles(Check::Bridges, vec![], "fine").state, State::Ok);
    }
}
