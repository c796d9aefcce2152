//! What is told of a VM's turn: in stead's own log, among the VM's events, and in the audit log, always all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::worker::Shared;
use crate::audit::{Entry, Outcome, Source};
use crate::desired::{Desired, Origin, SourceName};
use crate::names::VmName;
use crate::observed::ObservedVm;
use crate::plan::{Action, VmPlan};
use crate::reasons::Reason;
use crate::status::{EventType, NewEvent};

/// Which commit of each git source is in force.
pub(super) type Commits = Arc<BTreeMap<SourceName, String>>;

/// Tells of one turn.
pub(super) struct Telling<'a> {
    shared: &'a Shared,
    name: &'a VmName,
    desired: &'a Desired,
    commits: Commits,
    /// For its status.
    events: Vec<NewEvent>,
}

/// An action that is carried out now.
pub(super) struct Step {
    action: &'static str,
    reason: Reason,
    digest: String,
    source: Option<Source>,
    /// Whether the VM has failed time after time: what is done to it is the same again then.
    is_repeated: bool,
    began: Instant,
}

impl<'a> Telling<'a> {
    pub(super) fn new(shared: &'a Shared, name: &'a VmName, desired: &'a Desired, commits: Commits) -> Self {
        Self { shared, name, desired, commits, events: Vec::new() }
    }

    /// What is to be remembered of the turn.
    pub(super) fn into_events(self) -> Vec<NewEvent> {
        self.events
    }

    /// Whether nothing was told yet.
    pub(super) fn is_silent(&self) -> bool {
        self.events.is_empty()
    }

    /// An action, the first of this plan, begins.
    pub(super) fn step(&self, observed: &ObservedVm, plan: &VmPlan, action: &Action) -> Step {
        let source = self.origin(observed, action).map(|origin| {
            let commit = self.commits.get(&origin.source).cloned();
            Source::of(origin, commit)
        });
        let (reason, digest) = (action.event_reason(), plan.digest(self.name));
        let is_repeated = observed.ledger.backoff.as_ref().is_some_and(|backoff| backoff.failures > 1);
        Step { action: action.kind(), reason, digest, source, is_repeated, began: Instant::now() }
    }

    /// The declaration that an action follows from: of a VM that none declares any more, the one that did.
    fn origin<'b>(&'b self, observed: &'b ObservedVm, action: &'b Action) -> Option<&'b Origin> {
        let ledger = match action {
            Action::Start { origin, .. } => return Some(origin),
            Action::Record { ledger, .. } => ledger,
            _ => &observed.ledger,
        };
        let declared = || Some(&self.desired.vms.get(self.name)?.first()?.origin);
        ledger.accepted.as_ref().map(|accepted| &accepted.origin).or_else(declared)
    }

    /// It is done.
    pub(super) fn done(&mut self, step: &Step, what: &str) {
        self.act(step, Outcome::Done, step.reason, what);
    }

    /// It goes on later.
    pub(super) fn begun(&mut self, step: &Step, what: &str) {
        self.act(step, Outcome::Begun, Reason::Stopping, what);
    }

    /// It failed.
    pub(super) fn failed(&mut self, step: &Step, error: &str) {
        self.act(step, Outcome::Failed, Reason::Failed, error);
    }

    fn act(&mut self, step: &Step, outcome: Outcome, reason: Reason, message: &str) {
        let took = step.began.elapsed();
        self.shared.memory.metrics.action(step.action, outcome);
        let kind = if outcome == Outcome::Failed { EventType::Warning } else { EventType::Normal };
        let entry = self.entry(kind, reason, message).with_action(step.action, outcome, took);
        let (digest, source) = (Some(step.digest.clone()), step.source.clone());
        let entry = Entry { plan_digest: digest, source, ..entry };
        let Entry { duration_micros, plan_digest, source, .. } = &entry;
        let (vm, action, outcome) = (self.name, step.action, outcome.word());
        let commit = source.as_ref().and_then(|source| source.commit.as_deref());
        let origin = source.as_ref().map(ToString::to_string);
        if kind == EventType::Warning {
            tracing::warn!(%vm, action, %reason, outcome, duration_micros, plan_digest, origin, commit, "failed: {message}");
        } else {
            tracing::info!(%vm, action, %reason, outcome, duration_micros, plan_digest, origin, commit, "{message}");
        }
        self.tell(entry, step.is_repeated);
    }

    /// Something keeps it from being as declared.
    pub(super) fn held(&mut self, hold: &str) {
        tracing::warn!(vm = %self.name, reason = %Reason::Held, "held: {hold}");
        self.tell(self.entry(EventType::Warning, Reason::Held, hold), false);
    }

    /// Nothing does any more.
    pub(super) fn released(&mut self) {
        tracing::info!(vm = %self.name, "no longer held");
    }

    fn entry(&self, kind: EventType, reason: Reason, message: &str) -> Entry {
        let now = self.shared.stead.host.now().wall;
        Entry { vm: Some(self.name.clone()), ..Entry::new(now, kind, reason, message) }
    }

    fn tell(&mut self, entry: Entry, is_repeated: bool) {
        let Shared { memory, stead, .. } = self.shared;
        if is_repeated {
            memory.record_again(stead, &entry);
        } else {
            memory.record(stead, &entry);
        }
        let Entry { kind, reason, message, .. } = entry;
        self.events.push(NewEvent { kind, reason, message });
    }
}
