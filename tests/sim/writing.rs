//! A manifest that is saved bit by bit, while a daemon lists its folder for other reasons: half of it may be a sound manifest
//! of another VM.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use crate::bed::{Bed, vm};
use crate::glance::daemon;

/// The kernel tells of events in real time.
fn let_it_be_told() {
    std::thread::sleep(Duration::from_millis(50));
}

/// A VM whose manifest is sound at half its length too, and another one.
fn begin() -> (Bed, String) {
    let bed = Bed::new(0);
    let text = vm(&bed, "web", "  cpus: 2\n");
    std::fs::write(bed.manifests().join("web.yaml"), &text).unwrap();
    bed.apply("db.yaml", &vm(&bed, "db", ""));
    bed.converge("they run");
    (bed, text)
}

/// Has `meanwhile` happen between the two halves of the same manifest; the VM goes on.
fn is_not_read(bed: &Bed, text: &str, meanwhile: impl FnOnce()) {
    let is_web = |bed: &Bed| bed.machine.read(&bed.layout.handles(&"web".parse().unwrap()));
    let before = is_web(bed);
    let (half, rest) = text.split_at(text.len() - "  cpus: 2\n".len());
    daemon(bed, async |_| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut file = File::create(bed.manifests().join("web.yaml")).unwrap();
        file.write_all(half.as_bytes()).unwrap();
        let_it_be_told();
        meanwhile();
        let_it_be_told();
        tokio::time::sleep(Duration::from_secs(5)).await;
        file.write_all(rest.as_bytes()).unwrap();
        drop(file);
        let_it_be_told();
        tokio::time::sleep(Duration::from_secs(30)).await;
    });
    assert_eq!(is_web(bed), before, "the VM was restarted for half a manifest");
    bed.no_rule_is_broken("half a manifest");
}

#[test]
fn half_a_manifest_is_read_by_no_full_pass() {
    let (mut bed, text) = begin();
    bed.settings.resync = Duration::from_millis(100);
    is_not_read(&bed, &text, || {});
}

#[test]
fn half_a_manifest_is_read_by_no_listing_before_a_deletion() {
    let (bed, text) = begin();
    is_not_read(&bed, &text, || bed.remove("db.yaml"));
    let db = bed.layout.uid(&"db".parse().unwrap()).to_string();
    assert!(!bed.machine.objects().iter().any(|object| object.contains(&db)), "db is deleted");
}
