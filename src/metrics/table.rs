//! Every metric: its name, its labels with all their values, and what it says. The page and docs/metrics.md are made from this.
//!
//! Named as <https://prometheus.io/docs/practices/naming/> says: base units, counters end with `_total`, moments are seconds
//! since the epoch, so that how long ago they were is for the query to say.

/// A metric, with a time series for each combination of its labels.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name; a histogram's time series are called after it.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it says.
    pub help: &'static str,
    /// Its labels, each with what it can be.
    pub labels: &'static [(&'static str, &'static str)],
}

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows, until stead is started again.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// Counts of durations, by their length.
    Histogram,
}

impl Kind {
    /// Its word in the text format.
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

macro_rules! families {
    ($($constant:ident $kind:ident $name:literal [$($label:literal = $values:literal),*] $help:literal)*) => {
        $(
            pub(super) const $constant: Family = Family {
                name: $name,
                kind: Kind::$kind,
                help: $help,
                labels: &[$(($label, $values)),*],
            };
        )*
        /// All of them, in the order of the page.
        pub const ALL: &[Family] = &[$($constant),*];
    };
}

families! {
    BUILD_INFO Gauge "stead_build_info" ["version" = "of stead"] "Which stead this is; always 1."
    VMS Gauge "stead_vms" ["phase" = "as `stead get` shows it"] "VMs that are declared or known, by their state in one word."
    CONDITIONS Gauge "stead_vm_conditions" ["type" = "`Ready`, `Progressing`, `Degraded`, `Advisory`", "status" = "`True`, `False`, `Unknown`"]
        "VMs by the status of each of their conditions."
    HELD Gauge "stead_vms_held" ["reason" = "of the hold, as `stead plan -o json` has it"]
        "VMs on which something that is wanted is not done now; one with several holds counts for each."
    RESTARTS Counter "stead_vm_restarts_total" [] "Starts of VMs whose VMM had ended by itself."
    ACTIONS Counter "stead_actions_total" ["action" = "as in `stead events`", "outcome" = "`done`, `begun`, `failed`"]
        "Actions on VMs, by how they ended; begun are those that go on until a VMM has ended."
    WAKEUPS Counter "stead_wakeups_total" ["reason" = "`Startup`, `Manifest`, `Exited`, `Deadline`, `Resync`, `Request`"]
        "Reasons for which VMs were looked at; those that came together lead to one look and count each."
    PASS_SECONDS Histogram "stead_full_pass_duration_seconds" ["depth" = "`quick`, `thorough`"]
        "How long full passes took, from the listing to the end of the last turn and of the glance at the whole host."
    PASS_LAST Gauge "stead_last_full_pass_timestamp_seconds" ["depth" = "`quick`, `thorough`"]
        "When the last full pass was through, in seconds since the epoch; 0 before the first."
    PASS_STAGES Counter "stead_full_pass_stage_seconds_total" ["depth" = "`quick`, `thorough`", "stage" = "`listing`, `glance`"]
        "Of the time that full passes took: until all was listed, and for the glance at the whole host, which a quick one makes meanwhile."
    PASS_VMS Counter "stead_full_pass_vms_total" ["depth" = "`quick`, `thorough`"] "VMs that full passes were about."
    PASS_TURNS Counter "stead_full_pass_turns_total" ["depth" = "`quick`, `thorough`"]
        "Turns of VMs in full passes: the others were not looked at more closely than by a glance."
    PASS_LOOKS Counter "stead_full_pass_looks_total" ["depth" = "`quick`, `thorough`"]
        "Questions that the host was asked while full passes were under way, each of which is one system call or a few."
    PASS_PUT_OFF Counter "stead_full_passes_put_off_total" [] "Full passes that could not be made when they were due, and were tried again."
    QUEUE_DEPTH Gauge "stead_queue_depth" [] "VMs that wait for a worker."
    WORKING Gauge "stead_vms_working" [] "VMs that a worker is busy with."
    STUCK Gauge "stead_vms_stuck" [] "VMs whose worker hangs in a call to the host; the others go on without them."
    STARTING Gauge "stead_starts_in_progress" [] "VMs that are starting and keep one of the places for that."
    WAITING Gauge "stead_starts_waiting" [] "VMs that wait for such a place."
    ORPHANS Gauge "stead_orphans" [] "Kernel objects with this state's tag that nothing accounted for at the last look."
    ORPHANS_FREED Counter "stead_orphans_freed_total" [] "Such objects that were freed."
    ORPHANS_UNFREED Counter "stead_orphans_unfreed_total" [] "Times that such an object could not be freed."
    SOURCE_COMPLETE Gauge "stead_source_complete" ["source" = "its name in the configuration"]
        "Whether a source could be read whole: of one that could not nothing is pruned."
    SOURCE_SYNCED Gauge "stead_source_synced" ["source" = "a git source's name"] "Whether the last sync of a git source went well."
    SOURCE_LAST Gauge "stead_source_last_success_timestamp_seconds" ["source" = "a git source's name"]
        "When a git source was last asked with success, in seconds since the epoch; 0 if it never was."
    SYNCS Counter "stead_source_syncs_total" ["source" = "a git source's name", "outcome" = "`done`, `failed`"]
        "Syncs of git sources, by how they ended."
    PROBLEMS Gauge "stead_manifest_problems" [] "What is wrong with manifests that are in force now; `stead validate` says where."
    AUDIT_LOST Counter "stead_audit_lines_lost_total" [] "Lines of the audit log that could not be written."
}

/// The table of docs/metrics.md.
pub fn markdown() -> String {
    let mut text = "| metric | type | labels | what it says |\n|---|---|---|---|\n".to_owned();
    for Family { name, kind, help, labels } in ALL {
        let labels: Vec<String> = labels.iter().map(|(label, values)| format!("`{label}`: {values}")).collect();
        text += &format!("| `{name}` | {} | {} | {help} |\n", kind.word(), labels.join("; "));
    }
    text
}
