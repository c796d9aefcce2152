//! `stead get`: VMs, their liveness proven anew.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use serde::Serialize;

use super::{CliError, Context, Exit, table};
use crate::config::Access;
use crate::desired::structure::nearest;
use crate::names::VmName;
use crate::reconcile::{self, Stead};
use crate::status::{Condition, ConditionStatus, Status, VmPhase, is_listed, live};

/// Show VMs, their liveness proven anew
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead get
  stead get web -o yaml
  stead get -o wide --watch
  stead get -o name | xargs -n1 stead describe")]
pub struct Args {
    /// Only this VM
    name: Option<VmName>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// Go on, and show each VM again when it changes
    #[arg(short, long)]
    watch: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A line a VM
    #[default]
    Table,
    /// The same with more columns
    Wide,
    /// For programs
    Json,
    /// For programs that people read
    Yaml,
    /// Names alone
    Name,
}

/// One VM as it is shown: what was just proven, and of what was recorded what does not contradict it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    name: VmName,
    pub(super) phase: VmPhase,
    pub(super) ready: ConditionStatus,
    vmm: Option<String>,
    pid: Option<i32>,
    incarnation: u64,
    restarts: u32,
    since: Option<jiff::Timestamp>,
    pub(super) message: String,
    conditions: Vec<Condition>,
    recorded_at: Option<jiff::Timestamp>,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let stead = context.stead(Access::Reader)?;
    if args.watch {
        return watch(context, &stead, args);
    }
    let views = views(&stead, args.name.as_ref())?;
    if let (Some(name), true) = (&args.name, views.is_empty()) {
        return Err(unknown(&stead, name));
    }
    let now = stead.host.now().wall;
    context.term.print(render(&views, args, now, true)?)?;
    if views.is_empty() && args.output == Format::Table {
        context.term.note("no VM is known; `stead plan` shows what would be started");
    }
    Ok(Exit::Converged)
}

/// No such VM, and the one that may be meant.
pub(super) fn unknown(stead: &Stead, name: &VmName) -> CliError {
    let known: Vec<String> =
        views(stead, None).unwrap_or_default().into_iter().map(|view| view.name.to_string()).collect();
    let hint = nearest(name.as_str(), known.iter().map(String::as_str)).map(|near| format!("did you mean {near}?"));
    CliError::Usage {
        message: format!("there is no VM {name}"),
        hint: Some(hint.unwrap_or_else(|| "`stead get` lists those that there are".to_owned())),
    }
}

/// Every VM, or the one of this name.
pub(super) fn views(stead: &Stead, only: Option<&VmName>) -> Result<Vec<View>, CliError> {
    let observed = reconcile::look(stead, only)?;
    let now = stead.host.now();
    let mut views = Vec::new();
    for (name, vm) in &observed.vms {
        let status = read_status(stead, name);
        if !is_listed(status.as_ref(), vm) {
            continue;
        }
        let live = live(status.as_ref(), vm, &now);
        views.push(View {
            name: name.clone(),
            phase: live.phase,
            ready: live.ready,
            vmm: live.vmm.map(|vmm| vmm.to_string()),
            pid: live.pid,
            incarnation: live.incarnation.0,
            restarts: vm.ledger.restarts,
            since: live.since,
            message: live.message,
            conditions: status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default(),
            recorded_at: status.map(|status| status.updated_at),
        });
    }
    Ok(views)
}

/// What was last recorded for people; nothing when it cannot be read, since nothing is decided from it.
pub(super) fn read_status(stead: &Stead, name: &VmName) -> Option<Status> {
    let bytes = stead.host.read_state_file(&stead.layout.status(name)).ok().flatten()?;
    serde_json::from_slice(&bytes).ok()
}

fn render(views: &[View], args: &Args, now: jiff::Timestamp, header: bool) -> Result<String, CliError> {
    let is_one = args.name.is_some() && views.len() == 1;
    match args.output {
        Format::Json if is_one => table::json(&views[0]),
        Format::Json => table::json(&views),
        Format::Yaml if is_one => table::yaml(&views[0]),
        Format::Yaml => table::yaml(&views),
        Format::Name => Ok(views.iter().map(|view| format!("{}\n", view.name)).collect()),
        Format::Table | Format::Wide => Ok(rows(views, args.output == Format::Wide, now, header)),
    }
}

fn rows(views: &[View], wide: bool, now: jiff::Timestamp, header: bool) -> String {
    let mut titles = vec!["NAME", "STATUS", "READY", "VMM", "PID", "RESTARTS", "AGE"];
    if wide {
        titles.extend(["INCARNATION", "MESSAGE"]);
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    if header && !views.is_empty() {
        rows.push(titles.into_iter().map(str::to_owned).collect());
    }
    for view in views {
        let since = view.since.map(|since| table::age(now.duration_since(since).as_secs()));
        let mut row = vec![
            view.name.to_string(),
            view.phase.to_string(),
            format!("{:?}", view.ready),
            view.vmm.clone().unwrap_or_else(|| "-".to_owned()),
            view.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            view.restarts.to_string(),
            since.unwrap_or_else(|| "-".to_owned()),
        ];
        if wide {
            row.push(view.incarnation.to_string());
            row.push(view.message.clone());
        }
        rows.push(row);
    }
    table::columns(&rows)
}

/// Shows VMs again when they change. The state folder is watched; the end of a VMM that no stead watches over is looked for
/// now and then.
fn watch(context: &Context, stead: &Stead, args: &Args) -> Result<Exit, CliError> {
    const LOOK_ANYWAY: Duration = Duration::from_secs(10);
    let (tell, changed) = mpsc::sync_channel(1);
    let mut watcher = notify::recommended_watcher(move |_| {
        // One waiting change is enough: everything is looked at then.
        let _ = tell.try_send(());
    })?;
    if let Err(error) = watcher.watch(&stead.layout.vms(), RecursiveMode::Recursive) {
        context.term.note(&format!("{}: {error}; looking every {LOOK_ANYWAY:?}", stead.layout.vms().display()));
    }
    let mut shown: BTreeMap<VmName, View> = BTreeMap::new();
    loop {
        let views = views(stead, args.name.as_ref())?;
        let is_new = |view: &View| shown.get(&view.name) != Some(view);
        let news: Vec<View> = views.iter().filter(|view| is_new(view)).cloned().collect();
        if !news.is_empty() {
            context.term.print(render(&news, args, stead.host.now().wall, shown.is_empty())?)?;
        }
        for name in shown.keys().filter(|name| !views.iter().any(|view| view.name == **name)) {
            context.term.print(format!("{name}   Deleted\n"))?;
        }
        shown = views.into_iter().map(|view| (view.name.clone(), view)).collect();
        // Our own reads raise events too: a pause keeps them from feeding the next look.
        let _ = changed.recv_timeout(LOOK_ANYWAY);
        std::thread::sleep(Duration::from_millis(300));
        while changed.try_recv().is_ok() {}
    }
}
