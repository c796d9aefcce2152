//! What `restart`, `delete`, `approve` and `adopt` ask for, written down where the next look finds it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::{Memory, Stead};
use crate::act;
use crate::audit::{Entry, Outcome};
use crate::control::{Reply, Request};
use crate::desired::Desired;
use crate::names::VmName;
use crate::observed::Record;
use crate::observed::process::ProcessScan;
use crate::observed::snapshot::Looker;
use crate::reasons::Reason;
use crate::spec::SUSPEND_ANNOTATION;
use crate::state::{Approval, FORMAT_VERSION, GateState, Ledger, encode};
use crate::status::EventType;

/// Writes a request about one VM into its ledger. Only its own worker, or whoever holds STATE/lock, may call this.
pub(super) fn record(stead: &Stead, looker: &Looker<'_>, desired: &Desired, request: &Request) -> Reply {
    match request {
        Request::Restart { name } => change(stead, looker, name, |ledger| {
            let accepted = ledger.accepted.as_ref().map(|accepted| &accepted.vm);
            if desired.valid(name).next().or(accepted).is_some_and(|vm| vm.is_suspended()) {
                return Err(format!("{name} is suspended by {SUSPEND_ANNOTATION} in its manifest"));
            }
            if ledger.accepted.is_none() && !desired.vms.contains_key(name) {
                return Err(format!("no manifest declares {name}, so it could not be started again"));
            }
            ledger.restart_requested = true;
            Ok(format!("{name} will be restarted"))
        }),
        Request::Delete { name } => change(stead, looker, name, |ledger| {
            if let Some(declaration) = desired.vms.get(name).and_then(|declarations| declarations.first()) {
                let origin = &declaration.origin;
                return Err(format!("{name} is declared in {origin}: remove it there, or it would be started again"));
            }
            ledger.delete_requested = true;
            Ok(format!("{name} will be deleted"))
        }),
        Request::Approve { .. }
        | Request::Adopt { .. }
        | Request::Sync { .. }
        | Request::RollBack { .. }
        | Request::Gc
        | Request::Ping => refused("this request is not about one VM"),
    }
}

fn change(
    stead: &Stead,
    looker: &Looker<'_>,
    name: &VmName,
    apply: impl FnOnce(&mut Ledger) -> Result<String, String>,
) -> Reply {
    let read = looker.read_ledger(name).and_then(|ledger| Ok((ledger, looker.read_record(name)?)));
    let ((mut ledger, flaw), record) = match read {
        Ok(read) => read,
        Err(why) => return refused(format!("the state of VM {name} cannot be read now: {why}; try again")),
    };
    let known = record != Record::Missing || ledger.accepted.is_some();
    if !known {
        return refused(format!("there is no VM {name}; `stead get` lists them"));
    }
    let done = match apply(&mut ledger) {
        Ok(done) => done,
        Err(why) => return refused(why),
    };
    let path = stead.layout.ledger(name);
    let written = match flaw {
        Some(_) => stead.host.set_aside(&path).map(drop),
        None => Ok(()),
    };
    match written.and_then(|()| stead.host.write_durable(&path, &encode(&ledger))) {
        Ok(()) => accepted(done),
        Err(error) => refused(format!("writing {}: {error}; mend that and ask again", path.display())),
    }
}

/// Approves the plan of this digest, if it is the one that the gates hold back now: its digest, and the VMs that it deletes.
pub(super) fn approve(
    stead: &Stead,
    gates: &mut GateState,
    held: Option<(&str, BTreeSet<VmName>)>,
    digest: &str,
) -> Reply {
    let vms = match held {
        None => {
            return refused(
                "no gate holds anything back now; `stead plan` shows what would be done (files that have gone are waited for \
                 some seconds, and held back only then: ask again)",
            );
        }
        Some((held, _)) if held != digest => {
            return refused(format!(
                "the plan has changed: its digest is {held} now; look at it with `stead plan` before you approve it"
            ));
        }
        Some((_, vms)) => vms,
    };
    let approval = Approval { digest: digest.to_owned(), vms, at: Some(stead.host.now().deadline(Duration::ZERO)) };
    let approved = GateState { version: FORMAT_VERSION, approval: Some(approval), ..gates.clone() };
    match stead.host.write_durable(&stead.layout.gates(), &encode(&approved)) {
        Ok(()) => {
            *gates = approved;
            accepted(format!("approved {digest}"))
        }
        Err(error) => refused(format!("writing {}: {error}; mend that and ask again", stead.layout.gates().display())),
    }
}

/// Writes down that something was asked for, if it will be done.
pub(super) fn note(stead: &Stead, memory: &Memory, request: &Request, reply: &Reply) {
    let Reply::Accepted { message } = reply else { return };
    let vm = match request {
        Request::Restart { name } | Request::Delete { name } => Some(name.clone()),
        _ => None,
    };
    let entry = Entry::new(stead.host.now().wall, EventType::Normal, Reason::Requested, message);
    memory.record(stead, &Entry { vm, ..entry });
}

/// Takes over the VMs that another manager left in `dir`.
pub(super) fn adopt(stead: &Stead, memory: &Memory, scan: &ProcessScan, dir: &Path) -> (Reply, Vec<VmName>) {
    let facts = stead.host.host_facts();
    let results = act::adopt(&stead.actor(memory, &&facts), &stead.looker(&memory.cache, scan), dir);
    let mut lines = Vec::new();
    let mut names = Vec::new();
    let mut failed = false;
    for result in results {
        match result {
            Ok(adopted) => {
                tracing::info!(vm = %adopted.name, action = "adopt", "adopted pid {}", adopted.pid);
                let message = format!("adopted, pid {}", adopted.pid);
                let entry = Entry::new(stead.host.now().wall, EventType::Normal, Reason::Adopted, &message);
                let (vm, action) = (Some(adopted.name.clone()), Some("adopt".to_owned()));
                memory.record(stead, &Entry { vm, action, outcome: Some(Outcome::Done), ..entry });
                lines.push(format!("{}: {message}", adopted.name));
                lines.extend(adopted.notes.iter().map(|note| format!("{}: {note}", adopted.name)));
                names.push(adopted.name);
            }
            Err(error) => {
                failed = true;
                lines.push(error.to_string());
            }
        }
    }
    let text = lines.join("\n");
    (if failed { refused(text) } else { accepted(text) }, names)
}

pub(super) fn accepted(message: impl Into<String>) -> Reply {
    Reply::Accepted { message: message.into() }
}

pub(super) fn refused(message: impl Into<String>) -> Reply {
    Reply::Refused { message: message.into(), hint: None }
}

/// Who answers.
pub(super) fn pong() -> Reply {
    Reply::Pong { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id() }
}
