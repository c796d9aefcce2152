//! `stead describe`: everything about one VM.

use std::fmt::Write;

use serde_json::json;

use super::{CliError, Context, Exit, get, table};
use crate::config::Access;
use crate::names::VmName;
use crate::observed::{Fact, ObservedVm};
use crate::reconcile;
use crate::status::Status;

/// Show everything about one VM
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead describe web
  stead describe web -o json | jq .handles")]
pub struct Args {
    /// The VM
    name: VmName,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
    /// For programs that people read
    Yaml,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let stead = context.stead(Access::Reader)?;
    let views = get::views(&stead, Some(&args.name))?;
    let Some(view) = views.first() else { return Err(get::unknown(&stead, &args.name)) };
    let mut observed = reconcile::look(&stead, Some(&args.name))?;
    let Some(vm) = observed.vms.remove(&args.name) else { return Err(get::unknown(&stead, &args.name)) };
    let status = get::read_status(&stead, &args.name);
    let whole = json!({
        "status": view,
        "declared": vm.ledger.accepted,
        "handles": vm.record.handles(),
        "ledger": vm.ledger,
        "events": status.as_ref().map(|status| &status.events),
    });
    let text = match args.output {
        Format::Json => table::json(&whole)?,
        Format::Yaml => table::yaml(&whole)?,
        Format::Text => describe(view, &vm, status.as_ref(), stead.host.now().wall)?,
    };
    context.term.print(text)?;
    Ok(Exit::Converged)
}

fn describe(
    view: &get::View,
    vm: &ObservedVm,
    status: Option<&Status>,
    now: jiff::Timestamp,
) -> Result<String, CliError> {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(text, "{:<14}{value}", format!("{label}:"));
    };
    line("Name", vm.name.as_str());
    line("UID", &vm.ledger.uid.to_string());
    let message = if view.message.is_empty() { String::new() } else { format!(" ({})", view.message) };
    line("Status", &format!("{}{message}", view.phase));
    line("Incarnation", &vm.ledger.incarnation.max(live_incarnation(vm)).to_string());
    line("Restarts", &vm.ledger.restarts.to_string());
    if let Some(exit) = &vm.ledger.last_exit {
        let by = if exit.requested { "stopped" } else { "ended by itself" };
        line("Last end", &format!("incarnation {} {by}, {}, at {}", exit.incarnation, exit.status, exit.at));
    }
    if let Some(accepted) = &vm.ledger.accepted {
        line("Declared in", &format!("{} (generation {})", accepted.origin, accepted.generation));
        for (key, value) in &accepted.vm.labels {
            line("Label", &format!("{key}={value}"));
        }
        for (key, value) in &accepted.vm.annotations {
            line("Annotation", &format!("{key}={value}"));
        }
        text += "\nSpec:\n";
        text += &indent(&table::yaml(&accepted.vm.spec)?);
    }
    text += "\nHandles:\n";
    text += &handles(vm);
    text += "\nConditions:\n";
    match status {
        Some(status) => {
            let head = ["  TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"].map(str::to_owned).to_vec();
            let rows = status.conditions.iter().map(|condition| {
                let since = table::age(now.duration_since(condition.last_transition_time).as_secs());
                let (kind, value) = (format!("  {:?}", condition.kind), format!("{:?}", condition.status));
                vec![kind, value, condition.reason.clone(), since, condition.message.clone()]
            });
            text += &table::columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
        }
        None => text += "  none recorded yet\n",
    }
    text += "\nEvents:\n";
    match status.filter(|status| !status.events.is_empty()) {
        Some(status) => {
            let head = ["  LAST SEEN", "TYPE", "REASON", "COUNT", "MESSAGE"].map(str::to_owned).to_vec();
            let rows = status.events.iter().map(|event| {
                let ago = format!("  {}", table::age(now.duration_since(event.last_seen).as_secs()));
                vec![ago, event.kind.to_string(), event.reason.clone(), event.count.to_string(), event.message.clone()]
            });
            text += &table::columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
        }
        None => text += "  none\n",
    }
    Ok(text)
}

fn live_incarnation(vm: &ObservedVm) -> crate::names::Incarnation {
    vm.process.present().map(|process| process.incarnation).unwrap_or_default()
}

/// What the VM holds on the host, each with its state now.
fn handles(vm: &ObservedVm) -> String {
    let mut rows = Vec::new();
    let mut row = |what: &str, which: String, state: String| rows.push(vec![format!("  {what}"), which, state]);
    match &vm.process {
        Fact::Present(process) => {
            row(
                "process",
                format!("{} pid {}", process.vmm, process.process.identity.pid),
                "alive, proven ours".into(),
            );
        }
        Fact::Absent => row("process", "-".into(), "none, proven".into()),
        Fact::Unknown(why) => row("process", "-".into(), format!("unknown: {why}")),
    }
    if let Some(handles) = vm.record.handles() {
        row("api socket", handles.api_socket.display().to_string(), format!("{:?}", vm.guest));
        for tap in &handles.tap_devices {
            let state = match vm.taps.get(&tap.tap) {
                Some(Fact::Present(found)) => match &found.bridge {
                    Some(bridge) => format!("up on bridge {bridge}"),
                    None => "up".to_owned(),
                },
                Some(Fact::Absent) | None => "gone".to_owned(),
                Some(Fact::Unknown(why)) => format!("unknown: {why}"),
            };
            row("tap", format!("{} for {}", tap.tap, tap.interface), state);
        }
        for (step, blocked) in &handles.blocked {
            row("still held", step.clone(), format!("{} ({} tries)", blocked.why, blocked.failures));
        }
    }
    for file in &vm.leftover_files {
        row("left over", file.display().to_string(), "to be freed".into());
    }
    table::columns(&rows)
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
