//! Records that say what stead did not write, or wrote in another year.

use serde_json::Value;
use stead::host::sim::{Fault, Faults};

use crate::bed::{Bed, vm};

/// Changes a file of the VM's state as somebody else would.
fn edit(bed: &Bed, path: &std::path::Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&bed.machine.read(path).unwrap()).unwrap();
    change(&mut value);
    bed.machine.overwrite(path, &serde_json::to_vec_pretty(&value).unwrap());
}

#[test]
fn a_record_that_names_a_file_of_somebody_elses_removes_nothing() {
    for key in ["api_socket", "identity_socket"] {
        let bed = Bed::new(0);
        bed.apply("stays.yaml", &vm(&bed, "stays", "  powerState: Stopped\n"));
        bed.apply("web.yaml", &vm(&bed, "web", "  vmm: qemu\n"));
        bed.converge("it runs");
        bed.add_image("precious");
        let precious = bed.file("precious");
        edit(&bed, &bed.layout.handles(&"web".parse().unwrap()), |record| {
            record[key] = precious.display().to_string().into();
        });
        for pid in bed.machine.vmms() {
            bed.machine.kill(pid);
        }
        bed.remove("web.yaml");
        bed.converge("it is gone");
        assert!(bed.machine.vmms().is_empty());
        assert!(bed.machine.read(&precious).is_some(), "{key}: it was removed");
        bed.no_rule_is_broken(key);
    }
}

#[test]
fn a_vm_that_booted_before_a_field_was_known_is_not_started_anew_for_it() {
    let bed = Bed::new(0);
    let name = "web".parse().unwrap();
    bed.apply("web.yaml", &vm(&bed, "web", "  cpus: 2\n"));
    bed.converge("it runs");
    let lives = bed.machine.lives_of_vms();
    let mut known = 0;
    for path in [bed.layout.handles(&name), bed.layout.ledger(&name)] {
        edit(&bed, &path, |record| {
            for spec in ["/spec", "/booted/spec"] {
                let Some(Value::Object(spec)) = record.pointer_mut(spec) else { continue };
                known += usize::from(spec.remove("cpus").is_some());
            }
        });
    }
    assert_ne!(known, 0, "nothing says what it booted with");
    for _ in 0..3 {
        let pass = bed.pass(&Faults::default());
        let notes = pass.outcome.unwrap().plan.vms.into_values().flat_map(|plan| plan.notes);
        assert_eq!(notes.collect::<Vec<_>>(), Vec::<String>::new());
        assert_eq!(bed.machine.lives_of_vms(), lives);
    }
    bed.no_rule_is_broken("a field is missing");
}

#[test]
fn a_deleted_vm_leaves_no_status_whatever_fails_on_the_way() {
    let status = |bed: &Bed| bed.machine.read(&bed.layout.status(&"web".parse().unwrap()));
    let mut left = 0;
    for at in 1.. {
        let bed = Bed::new(0);
        bed.apply("stays.yaml", &vm(&bed, "stays", "  powerState: Stopped\n"));
        bed.apply("web.yaml", &vm(&bed, "web", "  terminationGracePeriodSeconds: 0\n"));
        bed.converge("it runs");
        assert!(status(&bed).is_some());
        bed.remove("web.yaml");
        let mut pass = bed.pass(&Faults::at(at, Fault::FailDone(5)));
        if pass.effects.len() < at {
            assert!(at > 5, "no deletion: {:?}", pass.effects);
            break;
        }
        left += usize::from(status(&bed).is_some());
        bed.machine.wait(std::time::Duration::from_secs(400));
        for _ in 0..4 {
            pass = bed.pass(&Faults::default());
        }
        assert!(pass.effects.is_empty(), "effect {at}: it is at rest: {:?}", pass.effects);
        assert_eq!(status(&bed), None, "effect {at}");
    }
    assert_ne!(left, 0, "no failure came early enough to matter");
}
