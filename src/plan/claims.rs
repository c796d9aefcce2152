//! Which VMs use which image: one that is written to has one user, and is nobody's base.

mod claimants;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::desired::{Desired, FileId};
use crate::names::VmName;
use crate::observed::ObservedVm;
use crate::spec::{Disk, VmSpec};

pub use claimants::Claimants;

/// Who uses each image, by manifest or by holding it now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Claims {
    by_image: BTreeMap<Image, Vec<Claim>>,
    /// The images of which that is known; `None`: of all.
    known: Option<BTreeSet<PathBuf>>,
    /// A VM that was not looked at yet, and may hold any image.
    unseen: Option<VmName>,
}

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
        let seen: BTreeMap<&VmName, &ObservedVm> = seen.collect();
        let names: BTreeSet<&VmName> = desired.vms.keys().chain(seen.keys().copied()).collect();
        let mut claims = Self::default();
        for name in names {
            for Use { image: path, writes, holds } in uses(desired, name, seen.get(name).copied()) {
                let claim = Claim { vm: name.clone(), writes, holds };
                claims.by_image.entry(image(desired, &path)).or_default().push(claim);
            }
        }
        claims
    }

    /// The same, while this VM was not looked at yet: what it holds is not known, so nobody else is given any image.
    #[must_use]
    pub fn with_unseen(self, unseen: Option<VmName>) -> Self {
        Self { unseen, ..self }
    }

    /// Why this VM may not be started with its disks now. `booted` is what it ran with last: of several that declare one image,
    /// the one that ran with it goes on, and the others wait.
    pub fn conflict(&self, desired: &Desired, vm: &VmName, spec: &VmSpec, booted: Option<&VmSpec>) -> Option<String> {
        if let Some(why) = twice(desired, spec) {
            return Some(why);
        }
        if let Some(unseen) = self.unseen.as_ref().filter(|unseen| !spec.disks.is_empty() && *unseen != vm) {
            return Some(format!("VM {unseen} was not looked at yet, and may hold one of its images"));
        }
        spec.disks.iter().find_map(|disk| {
            if self.known.as_ref().is_some_and(|known| !known.contains(&disk.image)) {
                return Some(format!("who else uses {} is not known yet", disk.image.display()));
            }
            let claims = self.by_image.get(&image(desired, &disk.image))?;
            let had_it = booted.is_some_and(|booted| booted.disks.iter().any(|before| before.image == disk.image));
            let clashes =
                |claim: &&Claim| claim.vm != *vm && (claim.writes || disk.writes_image()) && (claim.holds || !had_it);
            let other = claims.iter().filter(clashes).min_by_key(|claim| (claim.holds, &claim.vm))?;
            Some(explain(disk, other))
        })
    }
}

/// An image that one VM uses, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Use {
    image: PathBuf,
    writes: bool,
    holds: bool,
}

/// The images that a VM declares, and those that it may hold now by what was `seen` of it. One whose manifest is broken, or
/// that is declared more than once, claims what its last good spec names, which stays in force.
fn uses(desired: &Desired, name: &VmName, seen: Option<&ObservedVm>) -> Vec<Use> {
    let mut uses = Vec::new();
    let mut add = |spec: &VmSpec, holds: bool| {
        let of = |disk: &Disk| Use { image: disk.image.clone(), writes: disk.writes_image(), holds };
        uses.extend(spec.disks.iter().map(of));
    };
    for vm in desired.valid(name) {
        add(&vm.spec, false);
    }
    let Some(seen) = seen else { return uses };
    if let Some(accepted) = seen.ledger.accepted.as_ref().filter(|_| goes_by_last_good(desired, name)) {
        add(&accepted.vm.spec, false);
    }
    if seen.process.is_absent() && seen.record.handles().is_none() {
        return uses;
    }
    let spec = seen.record.handles().and_then(|handles| handles.spec.as_ref());
    let spec = spec.or(seen.ledger.booted.as_ref().map(|booted| &booted.spec));
    if let Some(spec) = spec.and_then(|spec| spec.read().ok()) {
        add(&spec, true);
    }
    uses
}

/// Whether what the manifests say of a VM cannot be taken up, so that its last good spec stays in force.
pub fn goes_by_last_good(desired: &Desired, name: &VmName) -> bool {
    match desired.vms.get(name).map(Vec::as_slice) {
        None => false,
        Some([only]) => only.vm.is_err(),
        Some(_) => true,
    }
}

/// Two disks of one VM that lead to one image by different paths, if one of them may write to it.
fn twice(desired: &Desired, spec: &VmSpec) -> Option<String> {
    spec.disks.iter().enumerate().find_map(|(index, disk)| {
        let same = |other: &&Disk| image(desired, &other.image) == image(desired, &disk.image);
        let other = spec.disks[..index].iter().filter(same).find(|other| other.writes_image() || disk.writes_image())?;
        Some(format!(
            "disks {} and {} lead to one image ({} and {}), and one of the two may write to it: give each an image of its own, \
             make both readOnly, or use mode snapshot or copy in both",
            other.name,
            disk.name,
            other.image.display(),
            disk.image.display()
        ))
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::DiskMode;
    use crate::vmm::tests::{disk, spec};

    #[test]
    fn two_paths_to_one_image_are_two_users_of_it() {
        let id = FileId { device: 1, inode: 2 };
        let images = [("/a.img", id), ("/link", id), ("/b.img", FileId { device: 1, inode: 3 })];
        let images = images.map(|(path, id)| (PathBuf::from(path), id)).into();
        let desired = Desired { images, ..Desired::default() };
        let name: VmName = "web".parse().unwrap();
        let conflict = |other: &str, mode: DiskMode, read_only: bool| {
            let mut spec = spec();
            spec.disks = vec![disk("root", "/a.img", false), disk("data", other, read_only)];
            spec.disks[0].mode = mode;
            Claims::default().conflict(&desired, &name, &spec, None)
        };
        assert!(conflict("/link", DiskMode::Direct, true).is_some_and(|why| why.contains("root and data")));
        // A base that another disk writes to by another name.
        assert!(conflict("/link", DiskMode::Snapshot, false).is_some());
        assert_eq!(conflict("/link", DiskMode::Snapshot, true), None);
        assert_eq!(conflict("/b.img", DiskMode::Direct, false), None);
    }
}
