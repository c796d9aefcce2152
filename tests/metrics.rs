//! What comes with stead for Prometheus and Grafana, and what is documented, against the metrics that there are.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what users do")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use stead::desired::SourceName;
use stead::metrics::Metrics;
use stead::metrics::table::{self, Kind};

mod prepared;

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap()
}

/// Runs promtool in contrib/prometheus; left out, and said so, where it was not prepared.
fn promtool(arguments: &[&str], input: &[u8]) -> Option<Output> {
    use std::io::Write;
    let program = prepared::bed_path("bin/promtool");
    if !program.exists() {
        eprintln!("left out: {} is missing: run `make prepare`", program.display());
        return None;
    }
    let mut command = Command::new(program);
    command.args(arguments).current_dir(file("contrib/prometheus"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    Some(child.wait_with_output().unwrap())
}

#[track_caller]
fn assert_content(output: &Output) {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
}

#[test]
fn prometheus_finds_nothing_to_say_about_the_page() {
    let metrics = Metrics::default();
    let name = SourceName("fleet".to_owned());
    metrics.manifests([(&name, true)], 0);
    metrics.synced(&name, true, jiff::Timestamp::UNIX_EPOCH);
    if let Some(output) = promtool(&["check", "metrics"], metrics.page().as_bytes()) {
        assert_content(&output);
        assert_eq!(output.stderr, b"", "{}", String::from_utf8_lossy(&output.stderr));
    }
    // It does find something where there is something.
    let page = metrics.page().replace("stead_vm_restarts_total", "stead_vm_restarts");
    if let Some(output) = promtool(&["check", "metrics"], page.as_bytes()) {
        assert!(!output.status.success(), "a counter that is not called _total");
    }
}

#[test]
fn the_alert_rules_are_sound_and_do_what_their_tests_say() {
    for arguments in [
        &["check", "rules", "stead.rules.yaml"][..],
        &["test", "rules", "stead.test.yaml"],
        &["check", "config", "--syntax-only", "scrape.yaml"],
    ] {
        if let Some(output) = promtool(arguments, b"") {
            assert_content(&output);
        }
    }
    // Each rule is tried: none is in the file that no test names.
    let tests = read("contrib/prometheus/stead.test.yaml");
    let rules = read("contrib/prometheus/stead.rules.yaml");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        assert!(tests.matches(alert).count() >= 2, "{alert} is not tried both ways");
    }
}

/// Every word of a text that is or looks like one of stead's metrics.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("stead_")).map(str::to_owned).collect()
}

/// The names of all time series.
fn series() -> BTreeSet<String> {
    let suffixes = |kind| if kind == Kind::Histogram { &["_bucket", "_sum", "_count"][..] } else { &[""] };
    let all = table::ALL.iter();
    all.flat_map(|family| suffixes(family.kind).iter().map(|suffix| format!("{}{suffix}", family.name))).collect()
}

#[test]
fn every_metric_that_the_rules_and_the_dashboard_name_is_there_with_the_labels_they_use() {
    let dashboard: Value = serde_json::from_str(&read("contrib/grafana/stead.json")).unwrap();
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        expressions.extend(panel["targets"].as_array().unwrap().iter().map(|target| target["expr"].to_string()));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        expressions.push(variable["query"].to_string());
    }
    let shown = named(&expressions.join(" "));
    let alerted = named(&read("contrib/prometheus/stead.rules.yaml"));
    let there = series();
    for name in shown.iter().chain(&alerted) {
        assert!(there.contains(name), "there is no {name}");
    }
    // And every one is shown: what nobody looks at need not be counted.
    for name in &there {
        assert!(shown.contains(name), "{name} is on no panel");
    }
    let labels: BTreeSet<&str> = table::ALL.iter().flat_map(|family| family.labels).map(|(label, _)| *label).collect();
    let used = format!("{}{}", expressions.join(" ").replace('\\', ""), read("contrib/prometheus/stead.rules.yaml"));
    for (at, _) in used.match_indices("=~\"").chain(used.match_indices("=\"")) {
        let label = used[..at].rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
        assert!(labels.contains(label) || ["job", "instance"].contains(&label), "no metric has a label {label:?}");
    }
}

#[test]
fn the_queries_of_the_dashboard_are_sound() {
    let dashboard: Value = serde_json::from_str(&read("contrib/grafana/stead.json")).unwrap();
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            let number = rules.lines().count();
            rules += &format!("  - {{record: 'r{number}', expr: {}}}\n", Value::from(expression));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dashboard.yaml");
    std::fs::write(&file, rules).unwrap();
    if let Some(output) = promtool(&["check", "rules", &file.display().to_string()], b"") {
        assert_content(&output);
    }
}

const BEGIN: &str = "<!-- From the code: UPDATE_DOCS=1 cargo test --test metrics -->\n\n";
const END: &str = "\n<!-- As far as that. -->";

#[test]
fn the_documented_metrics_are_those_that_there_are() {
    let page = read("docs/metrics.md");
    let (before, rest) = page.split_once(BEGIN).expect("docs/metrics.md says where its table begins");
    let (told, after) = rest.split_once(END).expect("docs/metrics.md says where its table ends");
    let table = table::markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(file("docs/metrics.md"), format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(told, table, "docs/metrics.md is not current: UPDATE_DOCS=1 cargo test --test metrics");
}
