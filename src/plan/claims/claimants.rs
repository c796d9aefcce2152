//! Who uses which image, kept up VM by VM: what is asked about one VM costs the same however many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Claim, Claims, Use, image, uses};
use crate::desired::{Desired, FileId};
use crate::names::VmName;
use crate::observed::ObservedVm;

/// The claims of all VMs, by path and by VM.
#[derive(Debug, Default)]
pub struct Claimants {
    /// By path, not by device and inode, which change under a path.
    by_path: BTreeMap<PathBuf, BTreeMap<Manner, BTreeSet<VmName>>>,
    by_vm: BTreeMap<VmName, Vec<Use>>,
    /// The paths that lead to one file.
    paths: BTreeMap<FileId, BTreeSet<PathBuf>>,
}

/// How an image is used. All who use one in the same manner are in the way of the same others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Manner {
    holds: bool,
    writes: bool,
}

impl Claimants {
    /// Takes in what a VM claims by its declarations, and by what was seen of it.
    pub fn set(&mut self, desired: &Desired, name: &VmName, seen: Option<&ObservedVm>) {
        let uses = uses(desired, name, seen);
        if self.by_vm.get(name).map_or(&[][..], Vec::as_slice) == uses {
            return;
        }
        for Use { image, writes, holds } in self.by_vm.remove(name).into_iter().flatten() {
            let Some(by_manner) = self.by_path.get_mut(&image) else { continue };
            if let Some(vms) = by_manner.get_mut(&Manner { holds, writes }) {
                vms.remove(name);
            }
            by_manner.retain(|_, vms| !vms.is_empty());
            if by_manner.is_empty() {
                self.by_path.remove(&image);
            }
        }
        if uses.is_empty() {
            return;
        }
        for Use { image, writes, holds } in &uses {
            let by_manner = self.by_path.entry(image.clone()).or_default();
            by_manner.entry(Manner { holds: *holds, writes: *writes }).or_default().insert(name.clone());
        }
        self.by_vm.insert(name.clone(), uses);
    }

    /// Takes in that a path leads to another file than before.
    pub fn set_id(&mut self, path: &Path, before: Option<FileId>, now: Option<FileId>) {
        if let Some(id) = before
            && let Some(paths) = self.paths.get_mut(&id)
        {
            paths.remove(path);
            if paths.is_empty() {
                self.paths.remove(&id);
            }
        }
        if let Some(id) = now {
            self.paths.entry(id).or_default().insert(path.to_owned());
        }
    }

    /// The images that a VM uses or declares.
    pub fn images(&self, name: &VmName) -> impl Iterator<Item = &PathBuf> {
        self.by_vm.get(name).into_iter().flatten().map(|used| &used.image)
    }

    /// Who else uses the images of this VM. Of those who are in its way alike, the first: one is enough.
    pub fn about(&self, desired: &Desired, name: &VmName) -> Claims {
        let mut claims = Claims { known: Some(self.images(name).cloned().collect()), ..Claims::default() };
        for path in claims.known.iter().flatten() {
            let others = claims.by_image.entry(image(desired, path)).or_default();
            let itself = BTreeSet::from([path.clone()]);
            let same = desired.images.get(path).and_then(|id| self.paths.get(id)).unwrap_or(&itself);
            for (manner, vms) in same.iter().filter_map(|path| self.by_path.get(path)).flatten() {
                let Manner { holds, writes } = *manner;
                let other = vms.iter().find(|vm| *vm != name);
                others.extend(other.map(|vm| Claim { vm: vm.clone(), writes, holds }));
            }
        }
        claims
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::desired::{Declaration, Origin, SourceName};
    use crate::names::{Incarnation, StateId};
    use crate::spec::{DiskMode, Vm, VmSpec};
    use crate::state::{Accepted, Booted, StoredSpec};
    use crate::vmm::tests::{disk, spec};

    const IMAGES: [&str; 4] = ["/a.img", "/b.img", "/link.img", "/c.img"];

    /// A number below `bound`, another one each time (Knuth's constants).
    fn next(seed: &mut u64, bound: u64) -> usize {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((*seed >> 33) % bound).unwrap()
    }

    fn some_spec(seed: &mut u64) -> VmSpec {
        let mut spec = spec();
        spec.disks = (0..next(seed, 3))
            .map(|number| {
                let mut disk = disk(&format!("d{number}"), IMAGES[next(seed, 4)], next(seed, 2) == 0);
                disk.mode = [DiskMode::Direct, DiskMode::Snapshot][next(seed, 2)];
                disk
            })
            .collect();
        spec
    }

    fn some_declarations(name: &VmName, seed: &mut u64) -> Vec<Declaration> {
        let declaration = |number: usize, seed: &mut u64| {
            let origin = Origin { source: SourceName("m".into()), path: format!("{number}.yaml").into(), line: 1 };
            let (labels, annotations) = Default::default();
            let vm = Vm { name: name.clone(), labels, annotations, spec: some_spec(seed).into() };
            Declaration { origin, vm: if next(seed, 4) == 0 { Err(Vec::new()) } else { Ok(Arc::new(vm)) } }
        };
        (0..next(seed, 3)).map(|number| declaration(number, seed)).collect()
    }

    fn some_sight(name: &VmName, seed: &mut u64) -> ObservedVm {
        let uid = StateId::derive("m", Path::new("/s")).uid(name);
        let mut observed = ObservedVm::nothing(name.clone(), uid);
        if next(seed, 2) == 0 {
            observed.process = crate::observed::Fact::Unknown("nobody knows".into());
        }
        let spec = StoredSpec::from(&some_spec(seed).into());
        observed.ledger.booted = Some(Booted { incarnation: Incarnation(1), spec, generation: 1 });
        let origin = Origin { source: SourceName("m".into()), path: "0.yaml".into(), line: 1 };
        let (labels, annotations) = Default::default();
        let vm = Vm { name: name.clone(), labels, annotations, spec: some_spec(seed).into() };
        observed.ledger.accepted = Some(Accepted { vm: vm.into(), origin, root: None, generation: 1 });
        observed
    }

    #[test]
    fn what_is_known_about_one_vm_refuses_it_what_all_claims_refuse_it() {
        let names: Vec<VmName> = ["a", "b", "c", "d", "e"].iter().map(|name| name.parse().unwrap()).collect();
        let (mut seed, mut refused) = (1, 0);
        let (mut desired, mut sights) = (Desired::default(), BTreeMap::new());
        let mut claimants = Claimants::default();
        for step in 0..4000 {
            // One thing changes, and the claims are kept up with it.
            if next(&mut seed, 4) == 0 {
                let path = PathBuf::from(IMAGES[next(&mut seed, 4)]);
                let id = [None, Some(1), Some(2)][next(&mut seed, 3)].map(|inode| FileId { device: 1, inode });
                claimants.set_id(&path, desired.images.get(&path).copied(), id);
                match id {
                    Some(id) => desired.images.insert(path, id),
                    None => desired.images.remove(&path),
                };
            } else {
                let name = &names[next(&mut seed, 5)];
                desired.vms.insert(name.clone(), some_declarations(name, &mut seed));
                if next(&mut seed, 3) == 0 {
                    sights.remove(name);
                } else {
                    sights.insert(name.clone(), some_sight(name, &mut seed));
                }
                claimants.set(&desired, name, sights.get(name));
            }
            let all = Claims::of(&desired, sights.iter());
            for name in &names {
                let about = claimants.about(&desired, name);
                let valid = desired.valid(name);
                let last_good = sights.get(name).and_then(|sight| sight.ledger.accepted.as_ref());
                let last_good = last_good.filter(|_| super::super::goes_by_last_good(&desired, name));
                let booted = some_spec(&mut seed);
                for spec in valid.map(|vm| &vm.spec).chain(last_good.map(|accepted| &accepted.vm.spec)) {
                    for booted in [None, Some(&booted)] {
                        let why = all.conflict(&desired, name, spec, booted);
                        assert_eq!(about.conflict(&desired, name, spec, booted), why, "step {step}, VM {name}");
                        refused += usize::from(why.is_some());
                    }
                }
            }
        }
        assert!(refused > 1000, "{refused}");
    }

    #[test]
    fn an_image_of_which_nothing_is_known_is_given_to_nobody() {
        let name: VmName = "web".parse().unwrap();
        let mut spec = spec();
        spec.disks = vec![disk("root", "/a.img", true)];
        let about = Claimants::default().about(&Desired::default(), &name);
        assert!(about.conflict(&Desired::default(), &name, &spec, None).is_some());
    }
}
