//! Which VMs use which image: one that is written to has one user, and is nobody's base.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::desired::{Desired, FileId};
use crate::names::VmName;
use crate::observed::ObservedVm;
use crate::spec::{Disk, VmSpec};

/// Who uses each image, by manifest or by holding it now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Claims(BTreeMap<Image, Vec<Claim>>);

/// An image by device and inode where it could be looked at, since two paths may lead to one file; else by its path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Image {
    Known(FileId),
    Path(PathBuf),
}

#[derive(Debug, Clone, PartialEq)]
struct Claim {
    vm: VmName,
    writes: bool,
    holds: bool,
}

impl Claims {
    /// The claims of every declared VM and of every VM in `seen` that may hold its images now.
    pub fn of<'a>(desired: &Desired, seen: impl Iterator<Item = (&'a VmName, &'a ObservedVm)>) -> Self {
        let mut claims = Self::default();
        for (name, declarations) in &desired.vms {
            for vm in declarations.iter().filter_map(|declaration| declaration.vm.as_ref().ok()) {
                claims.add(desired, name, &vm.spec, false);
            }
        }
        for (name, vm) in seen {
            if vm.process.is_absent() && vm.record.handles().is_none() {
                continue;
            }
            let spec = vm.record.handles().and_then(|handles| handles.spec.as_ref());
            let spec = spec.or(vm.ledger.booted.as_ref().map(|booted| &booted.spec));
            if let Some(spec) = spec.and_then(|spec| spec.read().ok()) {
                claims.add(desired, name, &spec, true);
            }
        }
        claims
    }

    fn add(&mut self, desired: &Desired, vm: &VmName, spec: &VmSpec, holds: bool) {
        for disk in &spec.disks {
            let claim = Claim { vm: vm.clone(), writes: disk.writes_image(), holds };
            self.0.entry(image(desired, &disk.image)).or_default().push(claim);
        }
    }

    /// Why this VM may not be started with its disks now. `booted` is what it ran with last: of several that declare one image,
    /// the one that ran with it goes on, and the others wait.
    pub fn conflict(&self, desired: &Desired, vm: &VmName, spec: &VmSpec, booted: Option<&VmSpec>) -> Option<String> {
        spec.disks.iter().find_map(|disk| {
            let claims = self.0.get(&image(desired, &disk.image))?;
            let had_it = booted.is_some_and(|booted| booted.disks.iter().any(|before| before.image == disk.image));
            let clashes =
                |claim: &&Claim| claim.vm != *vm && (claim.writes || disk.writes_image()) && (claim.holds || !had_it);
            let other = claims.iter().find(clashes)?;
            Some(explain(disk, other))
        })
    }
}

fn explain(disk: &Disk, other: &Claim) -> String {
    let uses = if other.holds { "is using" } else { "declares" };
    format!(
        "VM {} {uses} the image of disk {} ({}) too, and one of the two may write to it: give each an image of its own, \
         make it readOnly in both, or use mode snapshot or copy in both",
        other.vm,
        disk.name,
        disk.image.display()
    )
}

fn image(desired: &Desired, path: &Path) -> Image {
    desired.images.get(path).map_or_else(|| Image::Path(path.to_owned()), |id| Image::Known(*id))
}
