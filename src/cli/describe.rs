//! `stead describe NAME`.

use clap::ValueEnum;
use serde_json::Value;

use super::holdings::{Holding, holdings};
use super::table::{age, align, one_line};
use super::term::Stream;
use super::view::{Looker, View, Views, object, to_json, to_yaml};
use super::{CliError, Context, Exit};
use crate::names::VmName;
use crate::observed::Record;
use crate::reasons::Reason;
use crate::status::{ConditionStatus, ConditionType, EventType, Status};
use crate::time::Now;

/// Arguments of `stead describe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead describe web               its spec, conditions, what it holds on the host, and what happened last
  stead describe web -o yaml       the same for programs")]
pub struct Args {
    /// The VM
    name: VmName,

    /// How to show it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
    /// For both
    Yaml,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let mut looker = Looker::new(context)?;
    let (view, now) = looker.look_at(&args.name)?;
    let text = match args.output {
        Output::Text => describe(&view, &now, context.term.out)?,
        Output::Json => to_json(&whole(&view)?)?,
        Output::Yaml => to_yaml(&whole(&view)?)?,
    };
    context.term.print(text)?;
    looker.note_age(context, &Views { vms: vec![view], now: Some(now) });
    Ok(Exit::Converged)
}

/// The object that `get` shows, with what the VM holds and what stead remembers of it.
fn whole(view: &View) -> Result<Value, CliError> {
    let format = |error: serde_json::Error| CliError::Format(error.to_string());
    let mut value = object(view);
    value["holds"] = holdings(view).iter().map(Holding::json).collect::<Vec<_>>().into();
    value["handles"] = serde_json::to_value(view.observed.record.handles()).map_err(format)?;
    value["ledger"] = serde_json::to_value(&view.observed.ledger).map_err(format)?;
    Ok(value)
}

/// A heading and what stands under it, indented.
struct Page {
    text: String,
    out: Stream,
}

impl Page {
    fn fields(&mut self, fields: &[(&str, String)]) {
        let rows: Vec<_> = fields.iter().map(|(name, value)| vec![format!("{name}:"), value.clone()]).collect();
        self.lines("", &align(&rows));
    }

    fn table(&mut self, title: &str, header: &[&str], rows: Vec<Vec<String>>) {
        self.title(title);
        if rows.is_empty() {
            return self.lines("  ", &["none".to_owned()]);
        }
        let mut all = vec![header.iter().map(|&name| name.to_owned()).collect()];
        all.extend(rows);
        self.lines("  ", &align(&all));
    }

    fn title(&mut self, title: &str) {
        self.text.push_str(&self.out.strong(&format!("{title}:")));
        self.text.push('\n');
    }

    fn lines(&mut self, indent: &str, lines: &[String]) {
        for line in lines {
            self.text.extend([indent, line, "\n"]);
        }
    }
}

/// All of it for people.
pub(super) fn describe(view: &View, now: &Now, out: Stream) -> Result<String, CliError> {
    let mut page = Page { text: String::new(), out };
    let View { name, live, status, observed } = view;
    let accepted = observed.ledger.accepted.as_ref();
    let ago = |then| format!("{} ago", age(now.wall, then));
    let none = || "-".to_owned();
    let pairs = |map: &std::collections::BTreeMap<String, String>| {
        let all: Vec<_> = map.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if all.is_empty() { none() } else { all.join(", ") }
    };
    page.fields(&[
        ("Name", name.to_string()),
        ("UID", observed.ledger.uid.to_string()),
        ("Declared in", accepted.map_or_else(none, |accepted| accepted.origin.to_string())),
        ("Generation", accepted.map_or_else(none, |accepted| accepted.generation.to_string())),
        ("Labels", accepted.map_or_else(none, |accepted| pairs(&accepted.vm.labels))),
        ("Annotations", accepted.map_or_else(none, |accepted| pairs(&accepted.vm.annotations))),
        ("Status", live.phase.to_string()),
        ("Ready", live.ready.to_string()),
        ("Message", if live.message.is_empty() { none() } else { one_line(&live.message) }),
        ("Since", live.since.map_or_else(none, |since| format!("{since} ({})", ago(since)))),
        ("VMM", live.vmm.map_or_else(none, |vmm| vmm.to_string())),
        ("PID", live.pid.map_or_else(none, |pid| pid.to_string())),
        ("Incarnation", live.incarnation.to_string()),
        ("Restarts", observed.ledger.restarts.to_string()),
        (
            "Last exit",
            observed.ledger.last_exit.as_ref().map_or_else(none, |exit| format!("{} ({})", exit.status, ago(exit.at))),
        ),
    ]);
    page.title("Spec");
    match accepted {
        Some(accepted) => {
            let spec = serde_json::to_value(&accepted.vm.spec).map_err(|error| CliError::Format(error.to_string()))?;
            let yaml = to_yaml(&spec)?;
            page.lines("  ", &yaml.lines().map(str::to_owned).collect::<Vec<_>>());
        }
        None => page.lines("  ", &["unknown: no manifest declared it".to_owned()]),
    }
    handles(&mut page, view);
    let status = status.as_ref();
    let conditions = status.map_or(&[][..], |status| &status.conditions).iter().map(|condition| {
        let word = condition.status.to_string();
        let alarming = (condition.kind == ConditionType::Ready) != (condition.status == ConditionStatus::True);
        let calm = condition.kind == ConditionType::Progressing || !alarming;
        vec![
            condition.kind.to_string(),
            if calm { word } else { out.careful(&word) },
            condition.reason.clone(),
            age(now.wall, condition.last_transition_time),
            one_line(&condition.message),
        ]
    });
    page.table("Conditions", &["TYPE", "STATUS", "REASON", "AGE", "MESSAGE"], conditions.collect());
    let to_do = status.map(to_do).unwrap_or_default();
    if !to_do.is_empty() {
        page.title("What to do");
        page.lines("  ", &to_do);
    }
    let events = status.map_or(&[][..], |status| &status.events).iter().map(|event| {
        let word = event.kind.to_string();
        let last = age(now.wall, event.last_seen);
        vec![
            if event.kind == EventType::Normal { word } else { out.careful(&word) },
            event.reason.clone(),
            match event.count {
                1 => last,
                count => format!("{last} (x{count} over {})", age(now.wall, event.first_seen)),
            },
            one_line(&event.message),
        ]
    });
    page.table("Events", &["TYPE", "REASON", "AGE", "MESSAGE"], events.collect());
    Ok(page.text)
}

/// What to do about what is wrong or should be known, by its reason.
fn to_do(status: &Status) -> Vec<String> {
    let told = status.conditions.iter().filter(|condition| {
        let calls = matches!(condition.kind, ConditionType::Degraded | ConditionType::Advisory);
        calls && condition.status == ConditionStatus::True
    });
    let explained = told.filter_map(|condition| Reason::of_word(&condition.reason));
    explained.filter_map(|reason| Some(format!("{reason}: {}", reason.explain().to_do?))).collect()
}

/// What the VM holds on the host, and what of it could not be freed.
fn handles(page: &mut Page, view: &View) {
    if let Record::Flawed(why) = &view.observed.record {
        page.title("Record");
        page.lines("  ", &[format!("cannot be trusted: {}", one_line(why))]);
    }
    let rows = holdings(view).iter().map(Holding::row).collect();
    page.table("Holds", &["KIND", "NAME", "FOR", "STATE"], rows);
    let blocked = view.observed.record.handles().map(|handles| &handles.blocked);
    if let Some(blocked) = blocked.filter(|blocked| !blocked.is_empty()) {
        let rows = blocked
            .iter()
            .map(|(step, blocked)| vec![step.clone(), blocked.failures.to_string(), one_line(&blocked.why)]);
        page.table("Not freed", &["WHAT", "TRIES", "WHY"], rows.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples::{now, plan, running};
    use crate::status::{NewEvent, StatusInput, compute, live};

    #[test]
    fn a_description_has_every_part_and_counts_events() {
        let observed = running();
        let idle = plan(vec![], vec![]);
        let input = StatusInput {
            observed: &observed,
            plan: &idle,
            generation: None,
            last_error: Some("disk\nfull"),
            under_way: None,
            advisories: &[],
        };
        let died = || vec![NewEvent::warning("Died", "exit status 1")];
        let first = compute(None, &input, died(), &now(1));
        let status = compute(Some(&first), &input, died(), &now(50));
        let live = live(Some(&status), &observed, &now(61));
        let view = View { name: observed.name.clone(), live, status: Some(status), observed };
        let text = describe(&view, &now(61), Stream::default()).unwrap();
        for part in [
            "Name:         web\n",
            "PID:          4711\n",
            "Spec:\n  unknown: no manifest declared it\n",
            "Holds:\n  KIND     NAME      FOR            STATE\n  process  pid 4711  incarnation 3  alive\n",
            "  Degraded     True    ActionFailed  1m0s  disk full\n",
            "What to do:\n  ActionFailed: The message says what was tried",
            "  Warning  Died    11s (x2 over 1m0s)  exit status 1\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
        assert!(whole(&view).unwrap()["ledger"]["uid"].is_string());
    }
}
