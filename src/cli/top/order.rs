//! Which VMs are shown, and in which order.

use std::cmp::{Ordering, Reverse};

use super::state::Row;
use crate::status::VmPhase;

/// What VMs are sorted by; those that are alike in it, by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// From a to z.
    #[default]
    Name,
    /// What needs an eye first.
    Status,
    /// The busiest first.
    Cpu,
    /// The largest first.
    Memory,
    /// The one started again most often first.
    Restarts,
    /// The youngest status first: what has just changed.
    Age,
}

impl Sort {
    const ALL: [Self; 6] = [Self::Name, Self::Status, Self::Cpu, Self::Memory, Self::Restarts, Self::Age];

    /// The next one, or the one before.
    pub(super) fn step(self, back: bool) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + if back { Self::ALL.len() - 1 } else { 1 }) % Self::ALL.len()]
    }

    /// Whether it needs to know of every VM what it takes of the host.
    pub(super) fn needs_usage(self) -> bool {
        matches!(self, Self::Cpu | Self::Memory)
    }

    /// How two VMs stand to each other.
    pub(super) fn compare(self, a: &Row, b: &Row) -> Ordering {
        let by = match self {
            Self::Name => Ordering::Equal,
            Self::Status => urgency(a.view.live.phase).cmp(&urgency(b.view.live.phase)),
            Self::Cpu => Reverse(a.cpu()).cmp(&Reverse(b.cpu())),
            Self::Memory => Reverse(a.memory()).cmp(&Reverse(b.memory())),
            Self::Restarts => Reverse(a.view.observed.ledger.restarts).cmp(&Reverse(b.view.observed.ledger.restarts)),
            Self::Age => Reverse(a.view.live.since).cmp(&Reverse(b.view.live.since)),
        };
        by.then_with(|| a.view.name.cmp(&b.view.name))
    }
}

/// 0 is what should be looked at first.
fn urgency(phase: VmPhase) -> u8 {
    match phase {
        VmPhase::Dead | VmPhase::Unhealthy | VmPhase::Unknown | VmPhase::BackingOff | VmPhase::Invalid => 0,
        VmPhase::Held | VmPhase::Pending | VmPhase::Unclaimed => 1,
        VmPhase::Starting | VmPhase::Stopping => 2,
        VmPhase::Paused => 3,
        VmPhase::Running => 4,
        VmPhase::Stopped | VmPhase::Finished => 5,
    }
}

/// Whether a VM is among those that a filter asks for: a part of its name, its status or one of its labels.
pub(super) fn matches(filter: &str, row: &Row) -> bool {
    let filter = filter.to_lowercase();
    let has = |text: &str| text.to_lowercase().contains(&filter);
    let labels = row.view.observed.ledger.accepted.iter().flat_map(|accepted| &accepted.vm.labels);
    has(row.view.name.as_str())
        || has(&row.view.live.phase.to_string())
        || labels.into_iter().any(|(key, value)| has(&format!("{key}={value}")))
}
