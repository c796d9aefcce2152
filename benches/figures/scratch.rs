//! Folders for what is measured, each apart from all that was measured before.
//!
//! ext4 takes no inode that was freed within the last one to five minutes, and passes over each of them, one by one, whenever a
//! file is made in the same block group (`recently_deleted` in fs/ext4/ialloc.c). A burst of VMs torn down and removed just
//! before makes the next one half as fast: what is measured then is the order of the figures. So all of it lies in one folder
//! that has the flag `T` (chattr(1)), whose subfolders ext4 puts into block groups far from each other.

use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use tempfile::{Builder, TempDir};

use crate::bed::Host;

static PARENT: OnceLock<TempDir> = OnceLock::new();

/// The folder that all others are in, made at its first use. Short, since the paths of sockets are bounded.
fn parent() -> &'static Path {
    let parent = PARENT.get_or_init(|| {
        let parent = Builder::new().prefix("stf").tempdir_in("/tmp").expect("a folder");
        let spread = File::open(parent.path()).and_then(|folder| {
            let flags = ioctl_getflags(&folder)?;
            Ok(ioctl_setflags(&folder, flags | IFlags::TOPDIR)?)
        });
        if let Err(error) = spread {
            eprintln!("what one figure removes may slow the next on this filesystem: {error}");
        }
        parent
    });
    parent.path()
}

/// A folder.
pub fn folder() -> TempDir {
    Builder::new().prefix("").rand_bytes(4).tempdir_in(parent()).expect("a folder")
}

/// The folders of one state, with the daemon that belongs to it.
pub fn host() -> Host {
    Host::below(parent())
}

/// Removes the folder that all others are in when this goes. Nothing is in it any more, or it stays.
pub struct Cleanup;

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Some(parent) = PARENT.get() {
            let _ = std::fs::remove_dir(parent.path());
        }
    }
}
