//! What is told of VMs that fail for days: enough to know it, and not so much that nothing else is known.

use std::time::Duration;

use stead::audit::Entry;

use crate::bed::{Bed, vm};
use crate::glance::daemon;

fn entries(bed: &Bed) -> Vec<Entry> {
    let text = bed.machine.read(&bed.layout.audit_log()).unwrap();
    text.split(|byte| *byte == b'\n').filter_map(Entry::parse).collect()
}

#[test]
fn a_vm_that_fails_for_days_leaves_room_for_others_in_the_audit_log_and_its_last_life_is_in_it() {
    const LIVES: usize = 300;
    let bed = Bed::new(0);
    bed.apply("vm0.yaml", &vm(&bed, "vm0", ""));
    daemon(&bed, async |_| {
        let mut lives = 0;
        while lives < LIVES {
            tokio::time::sleep(Duration::from_secs(20)).await;
            for pid in bed.machine.vmms() {
                bed.machine.kill(pid);
                lives += 1;
            }
        }
        // It runs again, and two full passes go by.
        tokio::time::sleep(Duration::from_secs(1800)).await;
    });
    let entries = entries(&bed);
    assert!(entries.len() < LIVES, "{} lines", entries.len());
    let starts: Vec<&Entry> = entries.iter().filter(|entry| entry.action.as_deref() == Some("start")).collect();
    let last = starts.last().unwrap();
    assert!(last.message.ends_with(&format!("incarnation {}", LIVES + 1)), "{last:?}");
    // Of the first two nobody knew that more would follow.
    assert_eq!(last.count, Some(u32::try_from(LIVES + 1 - 2).unwrap()), "{last:?}");
    assert!(starts.iter().any(|start| start.count == Some(4)) && starts.iter().all(|start| start.count != Some(3)));
    bed.no_rule_is_broken("it fails");
}
