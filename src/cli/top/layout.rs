//! What has how much room, and the pages that are longer than the screen. No page needs more room than there is.

use super::state::Row;
use super::text::{harmless, wrap};
use crate::cli::describe::describe;
use crate::cli::term::Stream;
use crate::time::Now;

/// A terminal's size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    /// Columns.
    pub columns: usize,
    /// Rows.
    pub rows: usize,
}

/// How the rows of a screen are shared out, from the top.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a row that is there or not")]
pub(super) struct List {
    /// Who this is, and how many VMs.
    pub title: bool,
    /// An empty row below it.
    pub gap: bool,
    /// The columns' names.
    pub headings: bool,
    /// VMs.
    pub vms: usize,
    /// The last events, with their heading and an empty row above it.
    pub events: usize,
    /// The keys.
    pub footer: bool,
}

/// The list of so many VMs.
pub(super) fn list(size: Size, count: usize) -> List {
    let Size { rows, .. } = size;
    let (title, gap, headings, footer) = (rows >= 3, rows >= 16, rows >= 4, rows >= 2);
    let left = rows - usize::from(title) - usize::from(gap) - usize::from(headings) - usize::from(footer);
    // What VMs leave free is for events.
    let least = match rows {
        ..14 => 0,
        14..20 => 5,
        20..32 => 7,
        _ => 12,
    };
    let vms = if least == 0 { left } else { count.max(3).min(left - least) };
    List { title, gap, headings, vms, events: left - vms, footer }
}

/// A page of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextPage {
    /// What it is.
    pub title: bool,
    /// Its text.
    pub body: usize,
    /// The keys.
    pub footer: bool,
}

/// A page of text, such as a description.
pub(super) fn page(size: Size) -> TextPage {
    let (title, footer) = (size.rows >= 3, size.rows >= 2);
    TextPage { title, body: size.rows - usize::from(title) - usize::from(footer), footer }
}

/// Everything about one VM, as `stead describe` says it.
pub(super) fn description(row: &Row, now: Option<&Now>, size: Size) -> Vec<String> {
    let Some(now) = now else { return Vec::new() };
    let text = describe(&row.view, now, Stream::default()).unwrap_or_else(|error| error.to_string());
    text.lines().flat_map(|line| wrapped(&harmless(line), size)).collect()
}

/// The keys, and what stands in the columns.
pub(super) fn help(size: Size) -> Vec<String> {
    HELP.lines().flat_map(|line| wrapped(line, size)).collect()
}

fn wrapped(line: &str, size: Size) -> Vec<String> {
    wrap(line.trim_end(), size.columns).into_iter().map(str::to_owned).collect()
}

const HELP: &str = "\
Keys:
  Up Down, j k        the VM above or below; on a page, a line
  PgUp PgDn, space    a screen
  Home End, g G       the first or the last
  Enter, d            describe the VM
  l                   its console, as it grows
  a                   deletions that wait for an approval
  /                   show only VMs with this in their name, status or labels
  s S                 sort by the next column, or the one before
  r                   the other way round
  Ctrl-L Ctrl-Z       draw the screen anew; back to the shell until fg
  Esc                 one step back; from the list: quit
  q, Ctrl-C           quit

Columns:
  CPU                 of one CPU, over the last seconds: two busy CPUs are 200%
  MEMORY              of the VMM in memory, and of the guest as declared
  RESTARTS            how often it was started again after its VMM had ended
  AGE                 how long its status is what it is
  CONDITIONS          what holds of it, why, and what to know about it

Nothing here changes a VM but an approval, which asks first.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_any_screen_is_given_out_once() {
        for rows in 0..80 {
            for count in [0, 1, 3, 7, 20, 1000] {
                let size = Size { columns: 80, rows };
                let list = list(size, count);
                let fixed = [list.title, list.gap, list.headings, list.footer].map(usize::from).iter().sum::<usize>();
                assert_eq!(fixed + list.vms + list.events, rows, "{count} VMs: {list:?}");
                assert!(rows == 0 || list.vms > 0, "{rows} rows");
                let page = page(size);
                assert_eq!(page.body + usize::from(page.title) + usize::from(page.footer), rows);
            }
        }
    }
}
