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
