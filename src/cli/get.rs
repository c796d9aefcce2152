//! `stead get [NAME]`.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::term::Stream;
use super::view::{Looker, Tone, View, Views, object, to_json, to_yaml, tone};
use super::{CliError, Context, Exit, table, watch};
use crate::names::VmName;
use crate::plan::LAST_GOOD;
use crate::status::{ConditionStatus, VmPhase};
use crate::time::Now;

/// Arguments of `stead get`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead get                                 every VM
  stead get web -o wide                     one VM, with what is wrong with it
  stead get --watch                         every VM, and a line for each change
  stead get -o json | jq '.items[].status'  for programs
  stead get -o name                         names alone, for xargs

Whether a VM lives is proven anew each time; AGE is how long its status is what it is.")]
pub struct Args {
    /// The VM; every VM where none is named
    name: Option<VmName>,

    /// How to show it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,

    /// Go on, with a line for each change
    #[arg(short, long)]
    watch: bool,
}

/// How VMs are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Columns
    #[default]
    Table,
    /// More columns
    Wide,
    /// For programs
    Json,
    /// For both
    Yaml,
    /// Names alone
    Name,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let mut looker = Looker::new(context)?;
    let views = match &args.name {
        Some(name) => {
            let (view, now) = looker.look_at(name)?;
            Views { vms: vec![view], now: Some(now) }
        }
        None => looker.look(None)?,
    };
    context.term.print(text(args.output, args.name.is_some(), &views, context.term.out)?)?;
    if views.vms.is_empty() && matches!(args.output, Output::Table | Output::Wide) {
        context.term.note("there are no VMs");
    }
    // With more columns, or for programs, it is in there.
    if let Some(note) = of_last_good(&views.vms).filter(|_| args.output == Output::Table) {
        context.term.note(&note);
    }
    looker.note_age(context, &views);
    if !args.watch {
        return Ok(Exit::Converged);
    }
    let mut shown = Shown::of(args.output, &views);
    watch::each_change(looker, |looker| {
        let views = looker.look(args.name.as_ref())?;
        let text = shown.changes(args.output, &views, context.term.out)?;
        Ok(context.term.print(text)?)
    })
}

/// Which VMs run by an earlier manifest than the one that is there: they look fine, and are not what their user has written.
fn of_last_good(vms: &[View]) -> Option<String> {
    let is_invalid = |view: &&View| view.live.message.contains(LAST_GOOD);
    let names: Vec<&str> = vms.iter().filter(is_invalid).map(|view| view.name.as_str()).collect();
    match names.as_slice() {
        [] => None,
        [name] => Some(format!("{name}: {LAST_GOOD}; `stead describe {name}` says what is wrong with it")),
        [first, ..] => Some(format!(
            "{}: their manifests are invalid, so their last good specs stay in force; `stead describe {first}` says what is \
             wrong with the first",
            names.join(", ")
        )),
    }
}

/// The VMs as text; `single` where one was asked for by name.
fn text(output: Output, single: bool, views: &Views, out: Stream) -> Result<String, CliError> {
    match output {
        Output::Table | Output::Wide => {
            let Some(now) = views.now.as_ref().filter(|_| !views.vms.is_empty()) else { return Ok(String::new()) };
            let mut rows = vec![header(output)];
            rows.extend(views.vms.iter().map(|view| row(output, view, now, out)));
            Ok(lines(&table::align(&rows)))
        }
        Output::Name => Ok(lines(&views.vms.iter().map(|view| view.name.to_string()).collect::<Vec<_>>())),
        Output::Json => to_json(&value(single, &views.vms)),
        Output::Yaml => to_yaml(&value(single, &views.vms)),
    }
}

fn value(single: bool, vms: &[View]) -> Value {
    match vms {
        [one] if single => object(one),
        all => json!({
            "apiVersion": "stead.dev/v1alpha1",
            "kind": "VirtualMachineList",
            "items": all.iter().map(object).collect::<Vec<_>>(),
        }),
    }
}

fn header(output: Output) -> Vec<String> {
    let wide: &[&str] =
        if output == Output::Wide { &["INCARNATION", "MEMORY", "CPUS", "KERNEL", "MESSAGE"] } else { &[] };
    let columns = ["NAME", "STATUS", "READY", "VMM", "PID", "RESTARTS", "AGE"];
    columns.iter().chain(wide).map(|&name| name.to_owned()).collect()
}

fn row(output: Output, view: &View, now: &Now, out: Stream) -> Vec<String> {
    let View { name, live, status: _, observed } = view;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut row = vec![
        name.to_string(),
        paint(live.phase, out),
        match live.ready {
            ConditionStatus::True => "True".to_owned(),
            other => out.careful(&other.to_string()),
        },
        or_dash(live.vmm.map(|vmm| vmm.to_string())),
        or_dash(live.pid.map(|pid| pid.to_string())),
        observed.ledger.restarts.to_string(),
        or_dash(live.since.map(|since| table::age(now.wall, since))),
    ];
    if output == Output::Wide {
        let spec = observed.ledger.accepted.as_ref().map(|accepted| &accepted.vm.spec);
        row.push(live.incarnation.to_string());
        row.push(or_dash(spec.map(|spec| format!("{}Mi", spec.memory_mib))));
        row.push(or_dash(spec.map(|spec| spec.cpus.to_string())));
        row.push(or_dash(spec.map(|spec| spec.boot.kernel.display().to_string())));
        row.push(table::one_line(&live.message));
    }
    row
}

fn paint(phase: VmPhase, out: Stream) -> String {
    let word = phase.to_string();
    match tone(phase) {
        Tone::Good => out.good(&word),
        Tone::Calm => word,
        Tone::Careful => out.careful(&word),
        Tone::Bad => out.bad(&word),
    }
}

/// What `--watch` showed last.
struct Shown {
    vms: Vec<View>,
    /// Widths of the columns of the first table: later rows keep to them.
    widths_of: Vec<Vec<String>>,
}

impl Shown {
    fn of(output: Output, views: &Views) -> Self {
        let mut widths_of = vec![header(output)];
        if let Some(now) = &views.now {
            widths_of.extend(views.vms.iter().map(|view| row(output, view, now, Stream::default())));
        }
        Self { vms: views.vms.clone(), widths_of }
    }

    /// The rows of VMs that are not as they were, as kubectl shows them: one line each, and none for those unchanged.
    fn changes(&mut self, output: Output, views: &Views, out: Stream) -> Result<String, CliError> {
        let Some(now) = &views.now else { return Ok(String::new()) };
        let changed = views.vms.iter().filter(|view| {
            let was = self.vms.iter().find(|was| was.name == view.name);
            was.is_none_or(|was| {
                (&was.live, was.observed.ledger.restarts) != (&view.live, view.observed.ledger.restarts)
            })
        });
        let gone = self.vms.iter().filter(|was| views.vms.iter().all(|view| view.name != was.name));
        let mut text = String::new();
        for view in changed {
            let lines = match output {
                Output::Table | Output::Wide => self.aligned(row(output, view, now, out)),
                Output::Name => format!("{}\n", view.name),
                Output::Json => to_json(&object(view))?,
                Output::Yaml => format!("---\n{}", to_yaml(&object(view))?),
            };
            text.push_str(&lines);
        }
        for was in gone.filter(|_| matches!(output, Output::Table | Output::Wide)) {
            text += &self.aligned(vec![was.name.to_string(), "Deleted".to_owned()]);
        }
        self.vms.clone_from(&views.vms);
        Ok(text)
    }

    /// One row under the columns that stand on the screen already.
    fn aligned(&self, row: Vec<String>) -> String {
        let mut rows = self.widths_of.clone();
        rows.push(row);
        table::align(&rows).pop().map_or_else(String::new, |line| line + "\n")
    }
}

fn lines(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::{gone, now, plan, running};
    use crate::status::{NewEvent, StatusInput, compute, live};

    fn view(name: &str, mut observed: crate::observed::ObservedVm, second: i64) -> View {
        observed.name = name.parse().unwrap();
        let idle = plan(vec![], vec![]);
        let input = StatusInput {
            observed: &observed,
            plan: &idle,
            generation: Some(1),
            last_error: None,
            under_way: None,
            advisories: &["a known hole".to_owned()],
        };
        let status = compute(None, &input, vec![NewEvent::normal("Started", "life 3")], &now(1));
        let live = live(Some(&status), &observed, &now(second));
        View { name: observed.name.clone(), live, status: Some(status), observed }
    }

    fn views(vms: Vec<View>, second: i64) -> Views {
        Views { vms, now: Some(now(second)) }
    }

    #[test]
    fn a_table_has_a_line_a_vm() {
        let views = views(vec![view("a", running(), 66), view("long-name", gone(), 66)], 66);
        let text = text(Output::Table, false, &views, Stream::default()).unwrap();
        let expected = "\
NAME       STATUS   READY  VMM          PID   RESTARTS  AGE
a          Running  True   firecracker  4711  0         1m5s
long-name  Stopped  False  -            -     0         1m5s
";
        assert_eq!(text, expected);
        let wide = super::text(Output::Wide, false, &views, Stream::default()).unwrap();
        assert!(wide.lines().nth(1).unwrap().ends_with("3            -       -     -       a known hole"), "{wide}");
    }

    #[test]
    fn who_runs_by_an_earlier_manifest_is_named_since_no_column_says_so() {
        let broken = |name: &str| {
            let mut view = view(name, running(), 66);
            view.live.message = format!("{LAST_GOOD}: web.yaml:6:3: the field `memory` is missing");
            view
        };
        assert_eq!(of_last_good(&[view("a", running(), 66)]), None);
        let one = of_last_good(&[view("a", running(), 66), broken("b")]).unwrap();
        assert!(one.starts_with("b: its manifest is invalid") && one.contains("`stead describe b`"), "{one}");
        let two = of_last_good(&[broken("b"), broken("c")]).unwrap();
        assert!(two.starts_with("b, c: their manifests are invalid"), "{two}");
    }

    #[test]
    fn one_vm_by_name_is_an_object_and_all_are_a_list() {
        let views = views(vec![view("a", running(), 2)], 2);
        let parse = |single| {
            let text = text(Output::Json, single, &views, Stream::default()).unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        assert_eq!(parse(true)["status"]["phase"], "Running");
        assert_eq!(parse(true)["status"]["events"][0]["count"], 1);
        assert_eq!(parse(false)["items"][0], parse(true));
    }

    #[test]
    fn a_watch_tells_of_changes_alone() {
        let out = Stream::default();
        let first = views(vec![view("a", running(), 2), view("b", running(), 2)], 2);
        let mut shown = Shown::of(Output::Table, &first);
        let later = views(vec![view("a", running(), 9), view("b", running(), 9)], 9);
        assert_eq!(shown.changes(Output::Table, &later, out).unwrap(), "", "time alone is no change");
        let dead = views(vec![view("a", gone(), 9), view("c", running(), 9)], 9);
        let told = shown.changes(Output::Table, &dead, out).unwrap();
        let words: Vec<Vec<_>> = told.lines().map(|line| line.split_whitespace().take(2).collect()).collect();
        assert_eq!(words, [["a", "Stopped"], ["c", "Running"], ["b", "Deleted"]]);
        assert_eq!(shown.changes(Output::Table, &dead, out).unwrap(), "");
    }
}
