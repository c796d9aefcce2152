//! The page: Prometheus' text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Of our own, and no library's. prometheus-client writes OpenMetrics, where a counter's HELP and TYPE go by another name than its
//! samples: read as the text format, which `promtool check metrics` does, its counters have no type. It and the older crate
//! `prometheus` keep each number in an object of their own behind a lock or an atomic, to be registered at run time; here the numbers
//! are one struct, copied at once, and the names one table that the documentation is made from as well. What is left is this file.

use std::fmt::{Display, Write};

use jiff::Timestamp;

use super::table::{self, Family, Kind};
use super::{Counts, DEPTHS, PASS_BOUNDS, Passes, STAGES};
use crate::audit::Outcome;
use crate::plan::{Action, Hold};
use crate::status::{ConditionStatus, ConditionType, VmPhase};
use crate::wakeups::Reason;

/// All of it. A label's value that can occur is there from the beginning: who waits for a counter's first step would not see one
/// that begins with it.
pub(super) fn page(counts: &Counts) -> String {
    let mut page = Page(String::with_capacity(16 << 10));
    page.one(&table::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
    let zero = 0;
    let vms = &counts.vms;
    page.family(&table::VMS);
    for phase in VmPhase::ALL {
        page.sample(&table::VMS, &[&phase.to_string()], vms.phases.get(&phase).unwrap_or(&zero));
    }
    page.family(&table::CONDITIONS);
    for kind in ConditionType::ALL {
        for status in [ConditionStatus::True, ConditionStatus::False, ConditionStatus::Unknown] {
            let value = vms.conditions.get(&(kind, status)).unwrap_or(&zero);
            page.sample(&table::CONDITIONS, &[&kind.to_string(), &status.to_string()], value);
        }
    }
    page.family(&table::HELD);
    for reason in Hold::REASONS {
        page.sample(&table::HELD, &[reason], vms.holds.get(reason).unwrap_or(&zero));
    }
    page.one(&table::RESTARTS, &[], vms.restarts);
    page.family(&table::ACTIONS);
    for action in Action::KINDS {
        for outcome in Outcome::ALL {
            let value = counts.actions.get(&(action, outcome)).unwrap_or(&zero);
            page.sample(&table::ACTIONS, &[action, outcome.word()], value);
        }
    }
    page.family(&table::WAKEUPS);
    for reason in Reason::ALL {
        let value = counts.wakeups.get(&reason).unwrap_or(&zero);
        page.sample(&table::WAKEUPS, &[&format!("{reason:?}")], value);
    }
    page.passes(counts);
    let queue = &counts.queue;
    page.one(&table::QUEUE_DEPTH, &[], queue.ready);
    page.one(&table::WORKING, &[], queue.working);
    page.one(&table::STUCK, &[], queue.overdue);
    page.one(&table::STARTING, &[], queue.starting);
    page.one(&table::WAITING, &[], queue.waiting);
    page.one(&table::ORPHANS, &[], counts.orphans);
    page.one(&table::ORPHANS_FREED, &[], counts.orphans_freed);
    page.one(&table::ORPHANS_UNFREED, &[], counts.orphans_unfreed);
    page.sources(counts);
    page.one(&table::PROBLEMS, &[], counts.problems);
    page.one(&table::AUDIT_LOST, &[], counts.audit_lost);
    page.0
}

struct Page(String);

impl Page {
    /// What comes before a metric's time series.
    fn family(&mut self, Family { name, kind, help, .. }: &Family) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.word());
    }

    fn one(&mut self, family: &Family, labels: &[&str], value: impl Display) {
        self.family(family);
        self.sample(family, labels, value);
    }

    /// One time series; its labels are in the order of the table.
    fn sample(&mut self, family: &Family, labels: &[&str], value: impl Display) {
        debug_assert!(family.labels.len() == labels.len() && family.kind != Kind::Histogram, "{}", family.name);
        let pairs = family.labels.iter().map(|(label, _)| *label).zip(labels.iter().copied());
        self.line(family.name, "", pairs, value);
    }

    fn line<'a>(
        &mut self,
        name: &str,
        suffix: &str,
        labels: impl Iterator<Item = (&'a str, &'a str)>,
        value: impl Display,
    ) {
        let labels: Vec<String> = labels.map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{suffix}{labels} {value}");
    }

    fn passes(&mut self, counts: &Counts) {
        let family = table::PASS_SECONDS;
        self.family(&family);
        let none = Passes::default();
        let of = |depth| counts.passes.get(depth).unwrap_or(&none);
        for depth in DEPTHS {
            let took = &of(depth).took;
            let label = || std::iter::once(("depth", depth));
            for (bound, count) in PASS_BOUNDS.iter().zip(took.buckets) {
                let bound = bound.to_string();
                self.line(family.name, "_bucket", label().chain([("le", bound.as_str())]), count);
            }
            self.line(family.name, "_bucket", label().chain([("le", "+Inf")]), took.count);
            self.line(family.name, "_sum", label(), took.sum);
            self.line(family.name, "_count", label(), took.count);
        }
        self.family(&table::PASS_LAST);
        for depth in DEPTHS {
            self.sample(&table::PASS_LAST, &[depth], seconds(of(depth).last));
        }
        self.family(&table::PASS_STAGES);
        for depth in DEPTHS {
            for (stage, sum) in STAGES.into_iter().zip(of(depth).stages) {
                self.sample(&table::PASS_STAGES, &[depth, stage], sum.as_secs_f64());
            }
        }
        let mut counter = |family: &Family, counts: [u64; DEPTHS.len()]| {
            self.family(family);
            for (depth, count) in DEPTHS.into_iter().zip(counts) {
                self.sample(family, &[depth], count);
            }
        };
        counter(&table::PASS_VMS, DEPTHS.map(|depth| of(depth).vms));
        counter(&table::PASS_TURNS, DEPTHS.map(|depth| of(depth).turns));
        counter(&table::PASS_LOOKS, DEPTHS.map(|depth| of(depth).looks));
        self.one(&table::PASS_PUT_OFF, &[], counts.passes_put_off);
    }

    fn sources(&mut self, counts: &Counts) {
        self.family(&table::SOURCE_COMPLETE);
        for (name, source) in &counts.sources {
            if let Some(is_complete) = source.is_complete {
                self.sample(&table::SOURCE_COMPLETE, &[&name.0], u8::from(is_complete));
            }
        }
        let git: Vec<_> =
            counts.sources.iter().filter_map(|(name, source)| Some((&name.0, source, source.is_synced?))).collect();
        self.family(&table::SOURCE_SYNCED);
        for (name, _, is_synced) in &git {
            self.sample(&table::SOURCE_SYNCED, &[name], u8::from(*is_synced));
        }
        self.family(&table::SOURCE_LAST);
        for (name, source, _) in &git {
            self.sample(&table::SOURCE_LAST, &[name], seconds(source.last_success));
        }
        self.family(&table::SYNCS);
        for (name, source, _) in &git {
            self.sample(&table::SYNCS, &[name, Outcome::Done.word()], source.synced);
            self.sample(&table::SYNCS, &[name, Outcome::Failed.word()], source.failed);
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Seconds since the epoch; 0 for a moment that never was.
fn seconds(moment: Option<Timestamp>) -> String {
    moment.map_or_else(|| "0".to_owned(), |moment| format!("{}.{:03}", moment.as_second(), moment.subsec_millisecond()))
}
