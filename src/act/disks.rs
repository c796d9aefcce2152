//! Making a VM's own disks ready: taken back from the trash, set aside, made, grown.
//!
//! The record of what a disk is made from is durable before its file has a name, and the file gets its name only when it is
//! whole: a crash anywhere leaves a disk that is complete, or none.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Map;

use super::image_locks::ImageGuard;
use super::{ActError, Actor, Outcome};
use crate::desired::FileId;
use crate::host::devices::{Copied, ImageIdentity, SECTOR};
use crate::names::{Backing, VmName};
use crate::observed::{ObservedVm, OwnDisk};
use crate::plan::Preparation;
use crate::spec::Disk;
use crate::state::{DiskRecord, FORMAT_VERSION, encode};
use crate::vmm::qcow2;

/// How long one turn copies before others have a look at what it does.
const COPY_SLICE: Duration = Duration::from_millis(250);
/// How long to wait for another VM's worker on the same image. Each holds it for a few system calls or one slice of a copy.
const LOCK_BOUND: Duration = Duration::from_secs(30);
/// Bytes of a chunk, the unit in which a snapshot copies: a page, so that a small write copies little.
pub(super) const CHUNK: u64 = 4096;
/// Bytes in which a persistent snapshot notes where one chunk went (`struct disk_exception`, drivers/md/dm-snap-persistent.c).
const EXCEPTION: u64 = 16;

/// How long the copy-on-write file of a disk must be, so that it holds every chunk of it: the header, the chunks, and a chunk
/// of notes for as many chunks as fit in one (drivers/md/dm-snap-persistent.c). It takes no space until it is written to.
pub(super) fn cow_bytes(disk_bytes: u64) -> u64 {
    let per_area = CHUNK / EXCEPTION;
    let chunks = disk_bytes.div_ceil(CHUNK);
    // One area to spare: the kernel calls a store full a little before it is.
    (1 + chunks + chunks.div_ceil(per_area) + per_area + 1) * CHUNK
}

impl Actor<'_> {
    /// Makes one of the VM's own disks ready.
    pub(super) fn prepare_disk(&self, vm: &ObservedVm, disk: &Disk, how: &Preparation) -> Result<Outcome, ActError> {
        let what = |error| ActError::one(format!("disk {}", disk.name), error);
        match how {
            Preparation::Restore { deleted_at } => self.restore_disks(vm, *deleted_at),
            Preparation::SetAside { why } => self.set_disk_aside(vm, disk, why),
            Preparation::Relocate => {
                let record = DiskRecord { image: disk.image.clone(), ..known_record(vm, &disk.name)?.clone() };
                self.write_disk_record(&record).map_err(what)?;
                Ok(Outcome::Done(format!("disk {}: its image is {} now", disk.name, disk.image.display())))
            }
            Preparation::Create { backing } => self.create_disk(vm, disk, *backing),
            Preparation::Grow { bytes } => self.grow_disk(vm, disk, *bytes),
        }
    }

    /// Takes an image's lock.
    pub(super) fn lock_image(&self, image: FileId) -> Result<ImageGuard<'_>, io::Error> {
        self.images.lock(image, LOCK_BOUND).map_err(io::Error::other)
    }

    fn restore_disks(&self, vm: &ObservedVm, deleted_at: u64) -> Result<Outcome, ActError> {
        self.make_vm_folder(&vm.name)?;
        let (trashed, disks) = (self.layout.trash_entry(&vm.name, deleted_at), self.layout.disks(&vm.name));
        let moved = self.host.rename_durable(&trashed, &disks);
        let step = format!("taking {} back", trashed.display());
        match moved {
            Ok(true) => Ok(Outcome::Done("its disks came back from the trash".to_owned())),
            Ok(false) => Err(ActError::one(step, "it is not in the trash any more")),
            Err(error) => Err(ActError::one(step, error)),
        }
    }

    fn set_disk_aside(&self, vm: &ObservedVm, disk: &Disk, why: &str) -> Result<Outcome, ActError> {
        let what = |error| ActError::one(format!("setting disk {} aside", disk.name), error);
        let record = known_record(vm, &disk.name)?;
        let stamp = self.host.now().wall.strftime("%Y%m%dT%H%M%S%6f").to_string();
        let aside = |path: PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            path.with_file_name(format!("{name}.aside-{stamp}"))
        };
        let file = self.layout.disk_file(&vm.name, &disk.name, record.backing);
        let note = self.layout.disk_record(&vm.name, &disk.name);
        // The record goes along as a copy, and the old one last: at no moment is there a file without a record of it.
        self.host.write_durable(&aside(note.clone()), &encode(record)).map_err(what)?;
        let kept = aside(file.clone());
        self.host.rename_durable(&file, &kept).map_err(what)?;
        self.host.remove_file(&note, true).map_err(what)?;
        Ok(Outcome::Done(format!("disk {}: {why}; what it had is kept in {}", disk.name, kept.display())))
    }

    fn create_disk(&self, vm: &ObservedVm, disk: &Disk, backing: Backing) -> Result<Outcome, ActError> {
        let what = |error: io::Error| ActError::one(format!("disk {}", disk.name), error);
        self.make_vm_folder(&vm.name)?;
        self.host.make_folder(&self.layout.disks(&vm.name)).map_err(what)?;
        let base = self.identify(disk).map_err(what)?;
        let _lock = self.lock_image(base.id).map_err(what)?;
        let bytes = disk.size_bytes.unwrap_or(base.bytes);
        check_sizes(disk, &base, bytes).map_err(what)?;
        if backing != Backing::Copy && base.is_device() {
            // Whether it was written to since cannot be told.
            let text = format!("{} is a block device, and a snapshot is made over a file", disk.image.display());
            return Err(what(io::Error::new(io::ErrorKind::InvalidInput, format!("{text}; use mode: copy or direct"))));
        }
        let record = DiskRecord {
            version: FORMAT_VERSION,
            name: vm.name.clone(),
            uid: self.layout.uid(&vm.name),
            disk: disk.name.clone(),
            backing,
            image: disk.image.clone(),
            base,
            bytes,
            extra: Map::new(),
        };
        if vm.disks.get(&disk.name).and_then(|own| own.record.as_ref().ok()) != Some(&record) {
            self.write_disk_record(&record).map_err(what)?;
        }
        let file = self.layout.disk_file(&vm.name, &disk.name, backing);
        let made = |how: &str| Outcome::Done(format!("disk {}: {how} {}", disk.name, disk.image.display()));
        match backing {
            Backing::Cow => {
                self.host.make_sparse_file(&file, cow_bytes(bytes)).map_err(what)?;
                Ok(made("a snapshot of"))
            }
            Backing::Qcow2 => {
                let overlay = qcow2::overlay(&disk.image, bytes).map_err(|why| what(io::Error::other(why)))?;
                self.host.write_durable(&file, &overlay).map_err(what)?;
                Ok(made("a qcow2 overlay over"))
            }
            Backing::Copy => match self.host.copy_image(&disk.image, &base, &file, bytes, COPY_SLICE).map_err(what)? {
                Copied::Done { shared: true } => Ok(made("a copy that shares its blocks with")),
                Copied::Done { shared: false } => Ok(made("a copy of")),
                Copied::Part { bytes: done, of } => {
                    let percent = done.saturating_mul(100).checked_div(of).unwrap_or(100);
                    let text = format!("copying the image of disk {}: {percent} % of {} MiB", disk.name, of >> 20);
                    Ok(Outcome::Later(text, self.host.now().deadline(Duration::ZERO)))
                }
            },
        }
    }

    /// The image as it is now.
    fn identify(&self, disk: &Disk) -> io::Result<ImageIdentity> {
        let image = disk.image.display();
        match self.host.image(&disk.image) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no image {image}"))),
            Err(error) => Err(io::Error::new(error.kind(), format!("the image {image}: {error}"))),
        }
    }

    /// The record goes last: until it says so, the guest sees the disk as it was, in a file that is long enough for both.
    fn grow_disk(&self, vm: &ObservedVm, disk: &Disk, bytes: u64) -> Result<Outcome, ActError> {
        let what = |error: io::Error| ActError::one(format!("growing disk {}", disk.name), error);
        let before = known_record(vm, &disk.name)?;
        check_sizes(disk, &before.base, bytes).map_err(what)?;
        let file = self.layout.disk_file(&vm.name, &disk.name, before.backing);
        match before.backing {
            Backing::Cow => drop(self.host.make_sparse_file(&file, cow_bytes(bytes)).map_err(what)?),
            Backing::Copy => drop(self.host.make_sparse_file(&file, bytes).map_err(what)?),
            Backing::Qcow2 if bytes > qcow2::room_to_grow(before.bytes) => {
                let most = qcow2::room_to_grow(before.bytes);
                return Err(what(io::Error::other(format!("this overlay has room for at most {most} bytes"))));
            }
            Backing::Qcow2 => {
                self.host.overwrite(&file, qcow2::SIZE_OFFSET, &bytes.to_be_bytes()).map_err(what)?;
            }
        }
        self.write_disk_record(&DiskRecord { bytes, ..before.clone() }).map_err(what)?;
        Ok(Outcome::Done(format!("disk {}: grown from {} to {bytes} bytes", disk.name, before.bytes)))
    }

    fn write_disk_record(&self, record: &DiskRecord) -> io::Result<()> {
        self.host.write_durable(&self.layout.disk_record(&record.name, &record.disk), &encode(record))
    }
}

/// The record of a disk that the plan took for granted.
pub(super) fn known_record<'a>(vm: &'a ObservedVm, disk: &VmName) -> Result<&'a DiskRecord, ActError> {
    let own: Option<&OwnDisk> = vm.disks.get(disk);
    let record = own.map(|own| own.record.as_ref()).ok_or_else(|| {
        ActError::one(format!("disk {disk}"), io::Error::new(io::ErrorKind::NotFound, "it was not prepared"))
    })?;
    record.map_err(|why| ActError::one(format!("disk {disk}"), why.clone()))
}

fn check_sizes(disk: &Disk, base: &ImageIdentity, bytes: u64) -> io::Result<()> {
    let image = disk.image.display();
    let refuse = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if base.bytes == 0 || !base.bytes.is_multiple_of(SECTOR) {
        let length = base.bytes;
        return refuse(format!(
            "{image} has {length} bytes, which is no whole number of sectors of {SECTOR} bytes: is it a raw image?"
        ));
    }
    if bytes < base.bytes {
        return refuse(format!("its size is {bytes} bytes and {image} has {}: a disk is never cut short", base.bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_on_write_file_holds_every_chunk_and_the_notes_about_them() {
        // 256 notes fill the first chunk of notes: header, notes, chunks, and one area to spare.
        assert_eq!(cow_bytes(256 * CHUNK), (1 + 256 + 1 + 257) * CHUNK);
        assert_eq!(cow_bytes(257 * CHUNK), (1 + 257 + 2 + 257) * CHUNK);
        assert!(cow_bytes(4 << 30) > 4 << 30);
        assert_eq!(cow_bytes(513) % CHUNK, 0);
    }
}
