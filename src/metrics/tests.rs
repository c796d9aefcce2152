use super::serve::Endpoint;
use super::*;
use crate::status::samples::{now, plan, running};
use crate::status::{StatusInput, compute};

use std::sync::Arc;

use hyper::Method;

/// What a VM's status is, in a world in which it runs, with so many restarts and these holds.
fn status(restarts: u32, plan: &VmPlan) -> Status {
    let mut observed = running();
    observed.ledger.restarts = restarts;
    let (generation, last_error, under_way, advisories) = (None, None, None, &[][..]);
    let input = StatusInput { observed: &observed, plan, generation, last_error, under_way, advisories };
    compute(None, &input, Vec::new(), &now(1))
}

fn value<'a>(page: &'a str, series: &str) -> &'a str {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in\n{page}"))
}

#[test]
fn a_vm_is_counted_once_by_what_it_is_now() {
    let (metrics, vms) = (Metrics::default(), VmTallies::default());
    let (calm, held) = (plan(vec![], vec![]), plan(vec![], vec![Hold::Starting, Hold::OnRestart(vec![])]));
    metrics.vm(&vms, &status(3, &held), &held);
    let page = metrics.page();
    assert_eq!(value(&page, "stead_vms{phase=\"Starting\"}"), "1");
    assert_eq!(value(&page, "stead_vms_held{reason=\"OnRestart\"}"), "1");
    assert_eq!(value(&page, "stead_vms_held{reason=\"Starting\"}"), "0", "that is told by stead_starts_in_progress");
    assert_eq!(value(&page, "stead_vm_conditions{type=\"Advisory\",status=\"False\"}"), "1");

    // What it had before this stead began is no news; what comes is.
    metrics.vm(&vms, &status(5, &calm), &calm);
    let page = metrics.page();
    assert_eq!(value(&page, "stead_vms{phase=\"Starting\"}"), "0");
    assert_eq!(value(&page, "stead_vms{phase=\"Running\"}"), "1");
    assert_eq!(value(&page, "stead_vm_conditions{type=\"Ready\",status=\"True\"}"), "1");
    assert_eq!(value(&page, "stead_vms_held{reason=\"OnRestart\"}"), "0");
    assert_eq!(value(&page, "stead_vm_restarts_total"), "2");

    metrics.forget(&vms, &"web".parse().unwrap());
    metrics.forget(&vms, &"web".parse().unwrap());
    let page = metrics.page();
    assert_eq!(value(&page, "stead_vms{phase=\"Running\"}"), "0");
    assert_eq!(value(&page, "stead_vm_restarts_total"), "2", "a counter goes down for nothing");
}

/// The status of another VM that is so.
fn status_of(name: &str, phase: VmPhase, degraded: bool) -> Status {
    let calm = plan(vec![], vec![]);
    let mut status = Status { name: name.parse().unwrap(), phase, ..status(0, &calm) };
    for condition in status.conditions.iter_mut().filter(|condition| condition.kind == ConditionType::Degraded) {
        condition.status = if degraded { ConditionStatus::True } else { ConditionStatus::False };
    }
    status
}

#[test]
fn each_vm_has_one_word_and_the_line_is_told_when_it_may_differ() {
    let (metrics, vms) = (Metrics::default(), VmTallies::default());
    let calm = plan(vec![], vec![]);
    assert_eq!(metrics.take_line(), None);
    let all = [
        status_of("a", VmPhase::Running, false),
        status_of("b", VmPhase::BackingOff, true),
        status_of("c", VmPhase::Running, false),
        status_of("d", VmPhase::BackingOff, false),
        status_of("e", VmPhase::Stopped, false),
    ];
    for status in &all {
        metrics.vm(&vms, status, &calm);
    }
    assert_eq!(metrics.take_line().as_deref(), Some("2 running, 1 degraded, 1 stopped, 1 backing off"));
    for status in &all {
        metrics.vm(&vms, status, &calm);
    }
    assert_eq!(metrics.take_line(), None, "the same again is no news");
    metrics.forget(&vms, &all[1].name);
    metrics.vm(&vms, &status_of("a", VmPhase::Unhealthy, true), &calm);
    assert_eq!(metrics.take_line().as_deref(), Some("1 running, 1 degraded, 1 stopped, 1 backing off"));
    for status in &all {
        metrics.forget(&vms, &status.name);
    }
    assert_eq!(metrics.take_line().as_deref(), Some("no VMs"));
}

#[test]
fn passes_fall_into_buckets_that_add_up() {
    let metrics = Metrics::default();
    assert!(!metrics.has_passed());
    for millis in [2, 300, 90_000] {
        let took = Duration::from_millis(millis);
        let (listing, glance) = (took / 2, took / 4);
        let pass = Pass { took, listing, glance, vms: 1000, turns: 3, looks: 4000 };
        metrics.pass("quick", &pass, Timestamp::from_millisecond(1_500).unwrap());
    }
    let page = metrics.page();
    let bucket = |le| value(&page, &format!("stead_full_pass_duration_seconds_bucket{{depth=\"quick\",le=\"{le}\"}}"));
    assert_eq!(["0.001", "0.005", "0.5", "60", "+Inf"].map(bucket), ["0", "1", "2", "2", "3"]);
    assert_eq!(value(&page, "stead_full_pass_duration_seconds_sum{depth=\"quick\"}"), "90.302");
    assert_eq!(value(&page, "stead_last_full_pass_timestamp_seconds{depth=\"quick\"}"), "1.500");
    assert_eq!(value(&page, "stead_last_full_pass_timestamp_seconds{depth=\"thorough\"}"), "0");
    let stage =
        |stage| value(&page, &format!("stead_full_pass_stage_seconds_total{{depth=\"quick\",stage=\"{stage}\"}}"));
    assert_eq!(["listing", "glance"].map(stage), ["45.151", "22.5755"]);
    let of = |what, depth| value(&page, &format!("stead_full_pass_{what}_total{{depth=\"{depth}\"}}"));
    assert_eq!(["vms", "turns", "looks"].map(|what| of(what, "quick")), ["3000", "9", "12000"]);
    assert_eq!(["vms", "turns", "looks"].map(|what| of(what, "thorough")), ["0", "0", "0"]);
    assert!(metrics.has_passed());
}

#[test]
fn the_page_has_each_metric_of_the_table_once_and_no_other() {
    let metrics = Metrics::default();
    let name = SourceName("we\"ird".to_owned());
    metrics.manifests([(&name, true)], 2);
    metrics.synced(&name, false, Timestamp::UNIX_EPOCH);
    let page = metrics.page();
    let told: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(told, table::ALL.iter().map(|family| family.name).collect::<Vec<_>>());
    for family in table::ALL {
        let sample = |line: &&str| !line.starts_with('#') && line.starts_with(family.name);
        assert!(page.lines().any(|line| sample(&line)), "{} has no time series", family.name);
    }
    assert_eq!(value(&page, "stead_source_syncs_total{source=\"we\\\"ird\",outcome=\"failed\"}"), "1");
    // Some two hundred, and so they stay: nothing in them grows with the VMs.
    assert!(page.lines().filter(|line| !line.starts_with('#')).count() < 250);
}

#[test]
fn a_page_costs_the_same_however_many_vms_there_are() {
    let (metrics, vms) = (Metrics::default(), VmTallies::default());
    let calm = plan(vec![], vec![]);
    let before = metrics.page().len();
    for number in 0..1000 {
        let status = Status { name: format!("vm-{number}").parse().unwrap(), ..status(0, &calm) };
        metrics.vm(&vms, &status, &calm);
    }
    let page = metrics.page();
    assert_eq!(value(&page, "stead_vms{phase=\"Running\"}"), "1000");
    // Two counts have three more digits, of four conditions each VM has one.
    assert!(page.len() < before + 50, "{} after {before}", page.len());
}

fn endpoint(bound: Duration) -> Endpoint {
    Endpoint { metrics: Arc::default(), pulse: Arc::default(), turn_bound: bound }
}

async fn ask(endpoint: &Endpoint, path: &str) -> (u16, String) {
    let answer = endpoint.respond(&Method::GET, path).await;
    (answer.status().as_u16(), answer.into_body())
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_takes_turns_is_well_and_one_that_does_not_is_ill() {
    let endpoint = endpoint(Duration::from_secs(5));
    let (code, why) = ask(&endpoint, "/healthz").await;
    assert!(code == 503 && why.contains("has not taken a turn for 5s"), "{code} {why}");
    let pulse = Arc::clone(&endpoint.pulse);
    // A loop with nothing to do: being asked is what it takes its turn for.
    let turns = tokio::spawn(async move {
        loop {
            pulse.beat();
            pulse.asked().await;
        }
    });
    assert_eq!(ask(&endpoint, "/healthz").await, (200, "ok\n".to_owned()));
    let (code, why) = ask(&endpoint, "/readyz").await;
    assert!(code == 503 && why.contains("first full pass"), "{code} {why}");
    endpoint.metrics.pass("thorough", &Pass::default(), Timestamp::UNIX_EPOCH);
    assert_eq!(ask(&endpoint, "/readyz").await.0, 200);
    let both = tokio::join!(ask(&endpoint, "/healthz"), ask(&endpoint, "/readyz"));
    assert_eq!((both.0.0, both.1.0), (200, 200));
    turns.abort();
    assert_eq!(ask(&endpoint, "/readyz").await.0, 503);
    // One that is about to end is not restarted for that, and not counted on.
    endpoint.pulse.end();
    assert_eq!((ask(&endpoint, "/healthz").await.0, ask(&endpoint, "/readyz").await.0), (200, 503));
}

#[tokio::test(start_paused = true)]
async fn what_the_loop_waits_for_before_its_first_turn_is_no_illness() {
    let endpoint = endpoint(Duration::from_secs(5));
    let task = endpoint.pulse.during(tokio::time::sleep(Duration::from_secs(60)));
    let asked = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        ask(&endpoint, "/healthz").await.0
    };
    assert_eq!(tokio::join!(task, asked).1, 200);
}

#[tokio::test]
async fn nothing_else_is_there_and_nothing_can_be_changed() {
    let endpoint = endpoint(Duration::ZERO);
    assert_eq!(ask(&endpoint, "/").await.0, 404);
    let answer = endpoint.respond(&Method::POST, "/metrics").await;
    assert_eq!((answer.status().as_u16(), answer.headers()["allow"].to_str().unwrap()), (405, "GET, HEAD"));
    let page = endpoint.respond(&Method::GET, "/metrics").await;
    assert_eq!(page.headers()["content-type"], CONTENT_TYPE);
}
