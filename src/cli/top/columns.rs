//! The columns of the list: which there is room for, and what stands in them.

use super::order::Sort;
use super::state::Row;
use super::text::{bytes, clean, fit, fit_right, percent};
use crate::cli::table::age;
use crate::status::{ConditionStatus, ConditionType};
use crate::time::Now;

/// Blanks between two columns.
const GAP: usize = 2;
/// The least that the longest name gets.
const NAME_MIN: usize = 8;
/// The least that the conditions get, and what they get before there is room for what is less telling.
const CONDITIONS_MIN: usize = 10;
const CONDITIONS_READABLE: usize = 32;

/// What a column tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Status,
    Ready,
    Vmm,
    Pid,
    Cpu,
    Memory,
    MemoryOf,
    Restarts,
    Age,
    Conditions,
}

/// A column and how wide it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub kind: Kind,
    pub width: usize,
}

impl Kind {
    /// From left to right.
    const ORDER: [Self; 11] = [
        Self::Name,
        Self::Status,
        Self::Ready,
        Self::Vmm,
        Self::Pid,
        Self::Cpu,
        Self::Memory,
        Self::MemoryOf,
        Self::Restarts,
        Self::Age,
        Self::Conditions,
    ];
    /// Who gets room first. `MemoryOf` takes the place of `Memory`.
    const FIRST: [Self; 10] = [
        Self::Status,
        Self::Cpu,
        Self::Memory,
        Self::Conditions,
        Self::Restarts,
        Self::Age,
        Self::Ready,
        Self::MemoryOf,
        Self::Vmm,
        Self::Pid,
    ];

    fn width(self) -> usize {
        match self {
            Self::Name => NAME_MIN,
            Self::Status => 10,
            Self::Ready | Self::Pid | Self::Memory => 7,
            Self::Vmm => 11,
            Self::MemoryOf => 13,
            Self::Restarts => 9,
            Self::Cpu | Self::Age => 6,
            Self::Conditions => CONDITIONS_MIN,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Name => "NAME",
            Self::Status => "STATUS",
            Self::Ready => "READY",
            Self::Vmm => "VMM",
            Self::Pid => "PID",
            Self::Cpu => "CPU",
            Self::Memory | Self::MemoryOf => "MEMORY",
            Self::Restarts => "RESTARTS",
            Self::Age => "AGE",
            Self::Conditions => "CONDITIONS",
        }
    }

    /// Whether it is worth more than what else the conditions could say.
    fn is_telling(self) -> bool {
        !matches!(self, Self::Ready | Self::MemoryOf | Self::Vmm | Self::Pid)
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Pid | Self::Cpu | Self::Memory | Self::MemoryOf | Self::Restarts | Self::Age)
    }

    fn sort(self) -> Option<Sort> {
        Some(match self {
            Self::Name => Sort::Name,
            Self::Status => Sort::Status,
            Self::Cpu => Sort::Cpu,
            Self::Memory | Self::MemoryOf => Sort::Memory,
            Self::Restarts => Sort::Restarts,
            Self::Age => Sort::Age,
            Self::Ready | Self::Vmm | Self::Pid | Self::Conditions => return None,
        })
    }
}

/// The columns that `columns` hold, where the longest name takes `longest`.
pub(super) fn choose(columns: usize, longest: usize) -> Vec<Column> {
    // A long name is cut off before the columns that matter most are left out.
    let vital: usize = [Kind::Status, Kind::Cpu, Kind::Memory].iter().map(|kind| kind.width() + GAP).sum();
    let most = match columns.checked_sub(Kind::Status.width() + GAP) {
        Some(beside) if (4..NAME_MIN).contains(&beside) => beside,
        _ => (columns / 4).min(columns.saturating_sub(vital)).max(NAME_MIN),
    };
    let name = longest.max(5).min(most).min(columns);
    let mut left = columns - name;
    let mut chosen = vec![Column { kind: Kind::Name, width: name }];
    for kind in Kind::FIRST {
        let instead = chosen.iter().position(|column| kind == Kind::MemoryOf && column.kind == Kind::Memory);
        let width = match instead {
            Some(at) => kind.width() - chosen[at].width,
            None => kind.width() + GAP,
        };
        let spare = if kind.is_telling() { 0 } else { CONDITIONS_READABLE - CONDITIONS_MIN };
        if left < width + spare {
            continue;
        }
        left -= width;
        let column = Column { kind, width: kind.width() };
        match instead {
            Some(at) => chosen[at] = column,
            None => chosen.push(column),
        }
    }
    chosen.sort_by_key(|column| Kind::ORDER.iter().position(|kind| *kind == column.kind));
    if let Some(last) = chosen.last_mut().filter(|column| column.kind == Kind::Conditions) {
        last.width += left;
    }
    chosen
}

/// The names of the columns, with a mark at the one that VMs are sorted by.
pub(super) fn headings(columns: &[Column], sort: Sort, reversed: bool) -> String {
    let cells = columns.iter().map(|column| {
        let is_sorted = column.kind.sort() == Some(sort);
        let title = column.kind.title().to_owned();
        cell(*column, &if is_sorted { title + if reversed { "▲" } else { "▼" } } else { title })
    });
    cells.collect::<Vec<_>>().join(&" ".repeat(GAP))
}

/// What stands in each column of a VM, with the blanks between.
pub(super) fn cells(columns: &[Column], row: &Row, now: &Now) -> Vec<(Kind, String)> {
    let last = columns.len().saturating_sub(1);
    let padded = |(at, column): (usize, &Column)| {
        let gap = if at == last { 0 } else { GAP };
        (column.kind, cell(*column, &text(column.kind, row, now)) + &" ".repeat(gap))
    };
    columns.iter().enumerate().map(padded).collect()
}

fn cell(column: Column, text: &str) -> String {
    if column.kind.is_number() { fit_right(text, column.width) } else { fit(text, column.width) }
}

fn text(kind: Kind, row: &Row, now: &Now) -> String {
    let live = &row.view.live;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    match kind {
        Kind::Name => row.view.name.to_string(),
        Kind::Status => live.phase.to_string(),
        Kind::Ready => live.ready.to_string(),
        Kind::Vmm => or_dash(live.vmm.map(|vmm| vmm.to_string())),
        Kind::Pid => or_dash(live.pid.map(|pid| pid.to_string())),
        Kind::Cpu => or_dash(row.cpu().map(percent)),
        Kind::Memory => or_dash(row.memory().map(bytes)),
        Kind::MemoryOf => {
            let declared = row.view.observed.ledger.accepted.as_ref().map(|accepted| accepted.vm.spec.memory_mib << 20);
            let of = declared.map_or_else(String::new, |declared| format!("/{}", bytes(declared)));
            or_dash(row.memory().map(|resident| bytes(resident) + &of))
        }
        Kind::Restarts => row.view.observed.ledger.restarts.to_string(),
        Kind::Age => or_dash(live.since.map(|since| age(now.wall, since))),
        Kind::Conditions => conditions(row),
    }
}

/// What holds of a VM, why, and what a person should know.
fn conditions(row: &Row) -> String {
    let live = &row.view.live;
    let status = row.view.status.as_ref();
    // What was recorded of another life, or before what was just seen, holds no more.
    let Some(status) = status.filter(|status| (status.phase, status.incarnation) == (live.phase, live.incarnation))
    else {
        return match status {
            _ if !live.message.is_empty() => clean(&live.message),
            Some(status) => format!("last recorded as {}", status.phase),
            None => "not recorded yet".to_owned(),
        };
    };
    let holds = status.conditions.iter().filter(|condition| condition.status == ConditionStatus::True);
    let mut worth: Vec<_> = holds.filter(|condition| condition.kind != ConditionType::Ready).collect();
    // What is wrong comes before what is done about it.
    worth.sort_by_key(|condition| condition.kind != ConditionType::Degraded);
    let mut words: Vec<String> = worth
        .iter()
        .map(|condition| match clean(&condition.reason) {
            // The status says it already.
            reason if reason == live.phase.to_string() => condition.kind.to_string(),
            reason => format!("{} {reason}", condition.kind),
        })
        .collect();
    if words.is_empty() {
        words.push(match status.condition(ConditionType::Ready) {
            Some(ready) if ready.status == ConditionStatus::True => ready.kind.to_string(),
            Some(ready) => format!("Not ready, {}", clean(&ready.reason)),
            None => "-".to_owned(),
        });
    }
    let words = words.join(", ");
    if live.message.is_empty() { words } else { format!("{words}: {}", clean(&live.message)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(columns: usize, longest: usize) -> Vec<Kind> {
        choose(columns, longest).iter().map(|column| column.kind).collect()
    }

    #[test]
    fn columns_never_take_more_than_there_is_and_the_most_important_come_first() {
        for columns in 0..200 {
            for longest in [0, 3, 8, 30, 63] {
                let chosen = choose(columns, longest);
                let taken = chosen.iter().map(|column| column.width).sum::<usize>() + GAP * (chosen.len() - 1);
                assert!(taken <= columns, "{columns} for {longest}: {chosen:?}");
                assert_eq!(chosen[0].kind, Kind::Name);
            }
        }
        for columns in [16, 18, 20] {
            assert_eq!(kinds(columns, 8), [Kind::Name, Kind::Status], "{columns}");
        }
        assert_eq!(kinds(38, 8), [Kind::Name, Kind::Status, Kind::Cpu, Kind::Memory]);
        let at_80 = kinds(78, 8);
        for kind in [Kind::Status, Kind::Cpu, Kind::Memory, Kind::Restarts, Kind::Age, Kind::Conditions] {
            assert!(at_80.contains(&kind), "{kind:?} is missing in {at_80:?}");
        }
        assert_eq!(choose(160, 8).len(), Kind::ORDER.len() - 1, "one of memory");
    }
}
