//! Two sources that declare one VM: it is the first one's, whatever happens to that.

use stead::config::{Source, SourceKind};
use stead::desired::SourceName;

use crate::bed::{Bed, vm};

/// A host with a second folder of manifests.
fn bed() -> Bed {
    let mut bed = Bed::new(0);
    let folder = bed.file("other");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    let name = SourceName("other".into());
    bed.settings.sources.push(Source { name, kind: SourceKind::Folder(folder) });
    bed.apply("stays.yaml", &vm(&bed, "stays", "  powerState: Stopped\n"));
    bed
}

fn web(bed: &Bed, comment: &str, cpus: u32) -> String {
    format!("{comment}{}", vm(bed, "web", &format!("  vmm: firecracker\n  cpus: {cpus}\n")))
}

#[test]
fn a_source_that_cannot_be_read_hands_no_vm_over() {
    let bed = bed();
    bed.apply("web.yaml", &web(&bed, "", 1));
    bed.converge("it runs");
    std::fs::write(bed.file("other/web.yaml"), web(&bed, "", 2)).unwrap();
    bed.converge("the second one is refused");
    let life = bed.machine.lives_of_vms();
    let away = bed.file("away");
    std::fs::rename(bed.manifests(), &away).unwrap();
    bed.converge("the first one cannot be read");
    assert_eq!(bed.machine.lives_of_vms(), life);
    std::fs::rename(&away, bed.manifests()).unwrap();
    bed.converge("it is back");
    assert_eq!(bed.machine.lives_of_vms(), life);
    // What it truly does not declare any more is the other one's.
    bed.remove("web.yaml");
    bed.converge("it is handed over");
    assert_ne!(bed.machine.lives_of_vms(), life);
    assert_eq!(bed.machine.vmms().len(), 1);
}

#[test]
fn a_manifest_that_is_moved_or_gets_a_line_on_top_stays_its_sources() {
    let bed = bed();
    bed.apply("web.yaml", &web(&bed, "", 1));
    bed.converge("it runs");
    std::fs::write(bed.file("other/web.yaml"), web(&bed, "", 2)).unwrap();
    let life = bed.machine.lives_of_vms();
    bed.apply("web.yaml", &web(&bed, "# a comment\n", 1));
    bed.converge("a line on top");
    bed.remove("web.yaml");
    bed.apply("moved.yaml", &web(&bed, "", 1));
    bed.converge("another file");
    assert_eq!(bed.machine.lives_of_vms(), life);
    // And its changes are followed.
    bed.apply("moved.yaml", &web(&bed, "", 3));
    bed.converge("a change");
    assert_ne!(bed.machine.lives_of_vms(), life);
    assert_eq!(bed.machine.vmms().len(), 1);
}
