//! What `get` and `describe` show of a VM: its last status, and over it what was proven just now.

use std::time::Duration;

use serde_json::{Value, json};

use super::{CliError, Context};
use crate::config::{Access, Settings, open_state};
use crate::control::{Request, ask};
use crate::host::HostView;
use crate::names::{Layout, VmName};
use crate::observed::ObservedVm;
use crate::reconcile::{Stead, look};
use crate::status::{self, Live, Status, VmPhase};
use crate::time::Now;

/// How long a running stead may take to say that it is there: a look must not hang on it.
const PING_BOUND: Duration = Duration::from_millis(500);
/// How many letters a name may be off for another to be suggested.
const NEAR: usize = 2;

/// One VM as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub name: VmName,
    /// What was just proven.
    pub live: Live,
    /// What was last recorded.
    pub status: Option<Status>,
    /// What exists.
    pub observed: ObservedVm,
}

/// How a phase strikes the eye. The word says the same: colour alone tells nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// All is well.
    Good,
    /// As its user wants it.
    Calm,
    /// It needs an eye.
    Careful,
    /// Something is wrong.
    Bad,
}

/// How this phase strikes the eye.
pub(super) fn tone(phase: VmPhase) -> Tone {
    match phase {
        VmPhase::Running => Tone::Good,
        VmPhase::Paused | VmPhase::Stopped | VmPhase::Finished => Tone::Calm,
        VmPhase::Starting | VmPhase::Stopping | VmPhase::Unclaimed | VmPhase::Held | VmPhase::Pending => Tone::Careful,
        VmPhase::BackingOff | VmPhase::Unhealthy | VmPhase::Unknown | VmPhase::Invalid | VmPhase::Dead => Tone::Bad,
    }
}

/// Every VM that there is to show, or the one of this name.
#[derive(Debug, Clone)]
pub(super) struct Views {
    pub vms: Vec<View>,
    /// The moment they were looked at; `None` when there is no state to look at.
    pub now: Option<Now>,
}

/// Where to look.
pub(super) struct Looker {
    settings: Settings,
    pub layout: Layout,
    /// The state and its host, once there is a state.
    stead: Option<Stead>,
}

impl Looker {
    pub(super) fn new(context: &Context) -> Result<Self, CliError> {
        let settings = context.settings()?;
        let layout = open_state(&settings, Access::Reader)?;
        Ok(Self { settings, layout, stead: None })
    }

    /// Looks at every VM, or at the one of this name, anew. A state that is not there has no VMs.
    pub(super) fn look(&mut self, only: Option<&VmName>) -> Result<Views, CliError> {
        if !self.layout.state_dir.exists() {
            return Ok(Views { vms: Vec::new(), now: None });
        }
        if self.stead.is_none() {
            // Opened again: the state may have been made since.
            let layout = open_state(&self.settings, Access::Reader)?;
            self.layout = layout.clone();
            let host = super::parts::host(&self.settings)?;
            self.stead = Some(Stead { settings: self.settings.clone(), layout, host });
        }
        let Some(stead) = &self.stead else { return Ok(Views { vms: Vec::new(), now: None }) };
        let observed = look(stead, only)?;
        let now = stead.host.now();
        let mut vms = Vec::new();
        for (name, observed) in observed.vms {
            if only.is_some_and(|only| *only != name) {
                continue;
            }
            let status = read_status(stead, &name);
            if status::is_listed(status.as_ref(), &observed) {
                let live = status::live(status.as_ref(), &observed, &now);
                vms.push(View { name, live, status, observed });
            }
        }
        Ok(Views { vms, now: Some(now) })
    }

    /// The host that was looked at, once there is a state.
    pub(super) fn host(&self) -> Option<&dyn HostView> {
        self.stead.as_ref().map(|stead| -> &dyn HostView { &*stead.host })
    }

    /// Looks at one VM, which there must be.
    pub(super) fn look_at(&mut self, name: &VmName) -> Result<(View, Now), CliError> {
        let Views { vms, now } = self.look(Some(name))?;
        match (vms.into_iter().next(), now) {
            (Some(view), Some(now)) => Ok((view, now)),
            _ => Err(no_such_vm(&self.layout, name)),
        }
    }

    /// Tells on standard error how old everything but liveness is, where nobody keeps it up to date.
    pub(super) fn note_age(&self, context: &Context, views: &Views) {
        let newest = views.vms.iter().filter_map(|view| Some(view.status.as_ref()?.updated_at)).max();
        let (Some(newest), Some(now)) = (newest, &views.now) else { return };
        let who = match ask(&self.layout, &Request::Ping, PING_BOUND) {
            Ok(Some(_)) => return,
            Ok(None) => "no `stead run` is at work".to_owned(),
            Err(error) => error.to_string(),
        };
        let ago = super::table::age(now.wall, newest);
        context.term.note(&format!("{who}: liveness was proven just now, the rest was last recorded {ago} ago"));
    }
}

/// The last status of a VM; one that cannot be read or trusted counts as none, since nothing depends on it.
fn read_status(stead: &Stead, name: &VmName) -> Option<Status> {
    let path = stead.layout.status(name);
    let read = stead.host.read_state_file(&path).map_err(|error| error.to_string());
    let parsed = read.and_then(|bytes| {
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string())).transpose()
    });
    parsed.unwrap_or_else(|error| {
        tracing::warn!(vm = %name, path = %path.display(), error, "status cannot be read");
        None
    })
}

/// The error for a name that no VM has, with the nearest one that a VM has.
pub(super) fn no_such_vm(layout: &Layout, name: &VmName) -> CliError {
    let folders = std::fs::read_dir(layout.vms()).into_iter().flatten().flatten();
    let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
    let nearest = nearest(name.as_str(), names);
    let hint = match nearest {
        Some(nearest) => format!("is it {nearest:?}? `stead get` shows every VM"),
        None => "`stead get` shows every VM, `stead plan` what its manifests would change".to_owned(),
    };
    CliError::Usage {
        message: format!("there is no VM {:?} in {}", name.as_str(), layout.state_dir.display()),
        hint: Some(hint),
    }
}

fn nearest(name: &str, names: impl Iterator<Item = String>) -> Option<String> {
    let near = names.map(|other| (strsim::damerau_levenshtein(name, &other), other));
    near.filter(|(distance, _)| (1..=NEAR).contains(distance)).min().map(|(_, other)| other)
}

/// A VM as an object of the kind that its manifest is of.
pub(super) fn object(view: &View) -> Value {
    let View { name, live, status, observed } = view;
    let accepted = observed.ledger.accepted.as_ref();
    let vm = accepted.map(|accepted| &accepted.vm);
    json!({
        "apiVersion": "stead.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {
            "name": name,
            "uid": observed.ledger.uid,
            "generation": accepted.map(|accepted| accepted.generation),
            "labels": vm.map(|vm| &vm.labels),
            "annotations": vm.map(|vm| &vm.annotations),
        },
        "spec": vm.map(|vm| &vm.spec),
        "status": {
            "phase": live.phase,
            "ready": live.ready,
            "vmm": live.vmm,
            "pid": live.pid,
            "incarnation": live.incarnation,
            "restarts": observed.ledger.restarts,
            "since": live.since,
            "message": live.message,
            "observedGeneration": status.as_ref().and_then(|status| status.observed_generation),
            "conditions": status.as_ref().map_or(&[][..], |status| &status.conditions),
            "events": status.as_ref().map_or(&[][..], |status| &status.events),
            "updatedAt": status.as_ref().map(|status| status.updated_at),
        },
    })
}

/// Indented JSON with a newline at its end.
pub(super) fn to_json(value: &Value) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CliError::Format(error.to_string()))?;
    Ok(text + "\n")
}

/// YAML with a newline at its end.
pub(super) fn to_yaml(value: &Value) -> Result<String, CliError> {
    let text = serde_yaml::to_string(value).map_err(|error| CliError::Format(error.to_string()))?;
    Ok(text.trim_end().to_owned() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_only_if_it_is_near() {
        let names = || ["web", "web-1", "database"].map(str::to_owned).into_iter();
        assert_eq!(nearest("wbe", names()).as_deref(), Some("web"));
        assert_eq!(nearest("databas", names()).as_deref(), Some("database"));
        assert_eq!(nearest("mail", names()), None);
    }

    #[test]
    fn yaml_keeps_text_that_looks_like_something_else() {
        let value = json!({"a": "yes", "b": "12", "c": null, "d": ["x: y"], "e": "two\nlines"});
        let yaml = to_yaml(&value).unwrap();
        assert_eq!(serde_yaml::from_str::<Value>(&yaml).unwrap(), value, "{yaml}");
    }
}
