use super::*;
use crate::plan::TeardownReason;
use crate::status::samples::{alive_with, gone, now, plan, running};
use crate::status::{ConditionType, EventType};

fn input<'a>(observed: &'a ObservedVm, plan: &'a VmPlan) -> StatusInput<'a> {
    StatusInput { observed, plan, generation: Some(1), last_error: None, under_way: None, advisories: &[] }
}

fn status(previous: Option<&Status>, observed: &ObservedVm, plan: &VmPlan, second: i64) -> Status {
    compute(previous, &input(observed, plan), vec![], &now(second))
}

fn backing_off(failures: u32) -> Hold {
    Hold::BackingOff { failures, until: now(99).deadline(std::time::Duration::ZERO), last: None }
}

#[test]
fn a_converged_pass_changes_nothing_at_all() {
    let idle = plan(vec![], vec![]);
    let first = status(None, &running(), &idle, 10);
    assert_eq!(first.phase, VmPhase::Running);
    assert_eq!(first.ready(), ConditionStatus::True);
    assert_eq!(first.pid, Some(4711));
    assert_eq!(first.message(), "");
    assert_eq!(status(Some(&first), &running(), &idle, 9_999), first);
}

#[test]
fn a_condition_keeps_its_time_until_its_status_flips() {
    let first = status(None, &gone(), &plan(vec![], vec![backing_off(1)]), 10);
    let second = status(Some(&first), &gone(), &plan(vec![], vec![backing_off(2)]), 20);
    let time = |status: &Status, kind| status.condition(kind).unwrap().last_transition_time.as_second();
    assert_ne!(first.condition(ConditionType::Degraded).unwrap().message, second.message());
    assert_eq!(time(&second, ConditionType::Degraded), 10, "another message is no flip");
    assert_eq!(second.updated_at.as_second(), 20);
    assert_eq!(second.since.as_second(), 10);
    let third = status(Some(&second), &running(), &plan(vec![], vec![]), 30);
    assert_eq!(time(&third, ConditionType::Degraded), 30);
    assert_eq!(time(&third, ConditionType::Ready), 30);
}

#[test]
fn a_new_life_is_a_new_since_even_in_the_same_phase() {
    let idle = plan(vec![], vec![]);
    let first = status(None, &running(), &idle, 10);
    let mut next = running();
    if let Fact::Present(process) = &mut next.process {
        process.incarnation = Incarnation(4);
    }
    let second = status(Some(&first), &next, &idle, 20);
    assert_eq!((second.incarnation, second.since.as_second()), (Incarnation(4), 20));
}

#[test]
fn every_state_has_its_word() {
    let teardown = || Action::Teardown { reason: TeardownReason::Stopped, grace_seconds: 1 };
    let unknown = ObservedVm { process: Fact::Unknown("EPERM".into()), ..gone() };
    let silent = alive_with(Guest::Silent("timed out".into()));
    let paused = alive_with(Guest::Is(GuestState::Paused));
    for (expected, ready, observed, plan) in [
        (VmPhase::Unknown, "Unknown", &unknown, plan(vec![], vec![Hold::IdentityUnknown("EPERM".into())])),
        (VmPhase::Unhealthy, "False", &silent, plan(vec![], vec![Hold::Unhealthy("timed out".into())])),
        (VmPhase::Starting, "False", &silent, plan(vec![], vec![Hold::Starting])),
        (VmPhase::Starting, "False", &running(), plan(vec![], vec![Hold::Starting])),
        (VmPhase::Paused, "False", &paused, plan(vec![], vec![])),
        (VmPhase::Stopping, "True", &running(), plan(vec![teardown()], vec![])),
        (VmPhase::Unclaimed, "True", &running(), plan(vec![], vec![Hold::Unclaimed])),
        (VmPhase::Held, "True", &running(), plan(vec![], vec![Hold::PruneCap { deletions: 3, of: 3 }])),
        (VmPhase::Running, "True", &running(), plan(vec![], vec![Hold::OnRestart(vec!["memory".into()])])),
        (VmPhase::BackingOff, "False", &gone(), plan(vec![], vec![backing_off(1)])),
        (VmPhase::Invalid, "False", &gone(), plan(vec![], vec![Hold::InvalidManifest("x".into())])),
        (VmPhase::Pending, "False", &gone(), plan(vec![], vec![Hold::Unmet("no kvm".into())])),
        (VmPhase::Stopping, "False", &gone(), plan(vec![teardown()], vec![])),
        (VmPhase::Stopped, "False", &gone(), plan(vec![], vec![])),
    ] {
        let status = status(None, observed, &plan, 1);
        assert_eq!(status.phase, expected, "{plan:?}");
        assert_eq!(status.ready().to_string(), ready, "{expected}");
    }
}

#[test]
fn what_passes_by_itself_is_not_degraded() {
    let waiting = plan(vec![], vec![Hold::PruneDelay(now(5).deadline(std::time::Duration::ZERO))]);
    let status = status(None, &running(), &waiting, 1);
    assert_eq!(status.condition(ConditionType::Degraded).unwrap().status, ConditionStatus::False);
    assert_eq!(status.condition(ConditionType::Progressing).unwrap().reason, "PruneDelay");
}

#[test]
fn an_error_and_a_known_hole_are_named() {
    let idle = plan(vec![], vec![]);
    let observed = running();
    let holes = ["firecracker 1.14.0 has CVE-2026-5747".to_owned()];
    let input = StatusInput { last_error: Some("disk full"), advisories: &holes, ..input(&observed, &idle) };
    let first = compute(None, &input, vec![], &now(1));
    assert_eq!(first.message(), "disk full");
    let advisory = first.condition(ConditionType::Advisory).unwrap();
    assert_eq!((advisory.reason.as_str(), advisory.message.as_str()), ("KnownVulnerability", holes[0].as_str()));
    let healed = status(Some(&first), &observed, &idle, 2);
    assert_eq!(healed.condition(ConditionType::Advisory), None);
}

#[test]
fn an_event_changes_the_status_and_is_kept() {
    let idle = plan(vec![], vec![]);
    let observed = running();
    let first = compute(None, &input(&observed, &idle), vec![NewEvent::normal("Started", "life 3")], &now(1));
    let second = compute(Some(&first), &input(&observed, &idle), vec![NewEvent::normal("Started", "life 3")], &now(2));
    assert_eq!(second.events.len(), 1);
    assert_eq!((second.events[0].kind, second.events[0].count), (EventType::Normal, 2));
    assert_eq!(second.updated_at.as_second(), 2);
}

#[test]
fn a_status_survives_being_written_and_read() {
    let first = status(None, &running(), &plan(vec![], vec![]), 1);
    let text = serde_json::to_string(&first).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), first);
    assert!(text.contains(r#""type":"Ready","status":"True","reason":"GuestRunning""#), "{text}");
}

#[test]
fn what_is_seen_beats_what_was_recorded() {
    let recorded = status(None, &running(), &plan(vec![], vec![]), 1);
    let dead = live(Some(&recorded), &gone(), &now(50));
    assert_eq!((dead.phase, dead.ready, dead.pid, dead.since), (VmPhase::Dead, ConditionStatus::False, None, None));
    let unknown = ObservedVm { process: Fact::Unknown("EPERM".into()), ..gone() };
    assert_eq!(live(Some(&recorded), &unknown, &now(50)).ready, ConditionStatus::Unknown);
    let hung = alive_with(Guest::Silent("timed out".into()));
    let hung = live(Some(&recorded), &hung, &now(50));
    assert_eq!((hung.phase, hung.message.as_str()), (VmPhase::Unhealthy, "its VMM does not answer: timed out"));
    let same = live(Some(&recorded), &running(), &now(50));
    assert_eq!((same.phase, same.since), (VmPhase::Running, Some(recorded.since)));
}

#[test]
fn what_only_a_plan_can_tell_is_kept_while_it_is_not_denied() {
    let held = status(None, &running(), &plan(vec![], vec![Hold::Unclaimed]), 1);
    assert_eq!(live(Some(&held), &running(), &now(2)).phase, VmPhase::Unclaimed);
    let waits = status(None, &gone(), &plan(vec![], vec![backing_off(2)]), 1);
    assert_eq!(live(Some(&waits), &gone(), &now(2)).phase, VmPhase::BackingOff);
    assert_eq!(live(Some(&waits), &running(), &now(2)).phase, VmPhase::Running);
}

#[test]
fn a_deleted_vm_is_not_listed_though_its_last_life_is_remembered() {
    let mut deleted = gone();
    deleted.ledger.incarnation = Incarnation(9);
    assert!(!is_listed(None, &deleted));
    assert!(is_listed(None, &running()));
    assert!(is_listed(None, &ObservedVm { process: Fact::Unknown(String::new()), ..gone() }));
}
