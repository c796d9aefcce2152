//! What happened last on this host. The one place that says where it is read from.

use std::cmp::Reverse;

use jiff::Timestamp;

use crate::cli::view::View;
use crate::names::VmName;
use crate::status::Event;

/// How many are kept: as many as the largest screens show.
pub(super) const RECENT_MAX: usize = 100;

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recent {
    pub vm: VmName,
    pub event: Event,
}

/// The last events of these VMs, the newest first: from the history that each status keeps.
pub(super) fn recent<'a>(vms: impl Iterator<Item = &'a View>) -> Vec<Recent> {
    let of = |view: &'a View| {
        let events = view.status.iter().flat_map(|status| status.events.iter().enumerate());
        events.map(|(number, event)| (Reverse(event.last_seen), &view.name, Reverse(number), event))
    };
    let mut all: Vec<_> = vms.flat_map(of).collect();
    let order = |entry: &(Reverse<Timestamp>, &'a VmName, Reverse<usize>, &'a Event)| (entry.0, entry.1, entry.2);
    if all.len() > RECENT_MAX {
        all.select_nth_unstable_by_key(RECENT_MAX, order);
        all.truncate(RECENT_MAX);
    }
    all.sort_unstable_by_key(order);
    all.into_iter().map(|(_, vm, _, event)| Recent { vm: vm.clone(), event: event.clone() }).collect()
}
