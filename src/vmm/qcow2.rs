//! The smallest qcow2 file: an overlay over a raw image into which nothing was written yet.
//!
//! Source: `docs/interop/qcow2.rst` of QEMU, version 3 of the format. QEMU is the only one who ever writes to it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// log2 of [`CLUSTER`]: QEMU's default.
const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster, in which the file is laid out.
const CLUSTER: usize = 1 << CLUSTER_BITS;
/// Bytes of the disk that one entry of the L1 table stands for: a cluster of 8-byte entries, a cluster each.
const BYTES_PER_L1_ENTRY: u64 = (CLUSTER as u64 / 8) * CLUSTER as u64;
/// Entries of the L1 table that fill one cluster. Never fewer are made, so that a disk grows to 4 TiB by its header alone.
const L1_ENTRIES_PER_CLUSTER: u64 = CLUSTER as u64 / 8;
/// Where the header says how long the disk is, in bytes, big-endian.
pub const SIZE_OFFSET: u64 = 24;
/// Longest name of a backing file that the format allows.
pub const BACKING_NAME_MAX: usize = 1023;
/// Largest disk that this layout holds: its L1 table stays within what one refcount block counts with room to spare.
pub const BYTES_MAX: u64 = 64 << 40;

/// Where the name of the backing file stands: after the header and its one extension.
const BACKING_NAME_OFFSET: usize = 104 + 16 + 8;

/// How many bytes a disk of this layout can grow to without a new L1 table.
pub fn room_to_grow(bytes: u64) -> u64 {
    l1_clusters(bytes) * L1_ENTRIES_PER_CLUSTER * BYTES_PER_L1_ENTRY
}

fn l1_clusters(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_L1_ENTRY).div_ceil(L1_ENTRIES_PER_CLUSTER).max(1)
}

/// An overlay over the raw image `image`, whose guest sees a disk of `bytes` bytes.
///
/// # Errors
/// When the image's name, or the disk, is longer than the format or this layout allows.
pub fn overlay(image: &Path, bytes: u64) -> Result<Vec<u8>, String> {
    let name = image.as_os_str().as_bytes();
    if name.len() > BACKING_NAME_MAX {
        return Err(format!("qcow2 allows {BACKING_NAME_MAX} bytes for the image's path, this one has {}", name.len()));
    }
    if bytes > BYTES_MAX {
        return Err(format!("a disk of {bytes} bytes is more than the {BYTES_MAX} that a qcow2 overlay is made for"));
    }
    let l1_clusters = usize::try_from(l1_clusters(bytes)).map_err(|_| "too large a disk".to_owned())?;
    // In this order: header, refcount table, refcount block, L1 table. What the guest writes follows.
    let clusters = 3 + l1_clusters;
    let mut file = vec![0; clusters * CLUSTER];
    let mut put = |offset: usize, field: &[u8]| file[offset..offset + field.len()].copy_from_slice(field);
    let at = |cluster: usize| ((cluster * CLUSTER) as u64).to_be_bytes();

    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(8, &(BACKING_NAME_OFFSET as u64).to_be_bytes());
    put(16, &u32::try_from(name.len()).expect("checked above").to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(24, &bytes.to_be_bytes());
    let l1_entries = u32::try_from(l1_clusters as u64 * L1_ENTRIES_PER_CLUSTER).expect("bounded by BYTES_MAX");
    put(36, &l1_entries.to_be_bytes());
    put(40, &at(3));
    put(48, &at(1));
    put(56, &1_u32.to_be_bytes());
    // log2 of the bits of a refcount, and the header's length.
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    // The backing file's format, so that nobody guesses it from what a guest wrote.
    put(104, &0xE279_2ACA_u32.to_be_bytes());
    put(108, &3_u32.to_be_bytes());
    put(112, b"raw\0\0\0\0\0");
    put(BACKING_NAME_OFFSET, name);

    put(CLUSTER, &at(2));
    for cluster in 0..clusters {
        put(2 * CLUSTER + cluster * 2, &1_u16.to_be_bytes());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_run_into_the_tables_is_refused() {
        let long = format!("/{}", "x".repeat(1023));
        assert!(overlay(Path::new(&long), 1 << 20).unwrap_err().contains("1024"));
        assert!(overlay(Path::new(&long[..1023]), 1 << 20).is_ok());
        assert!(overlay(Path::new("/x"), BYTES_MAX + 1).is_err());
    }

    #[test]
    fn small_disks_have_room_to_grow_and_large_ones_fit() {
        assert_eq!(room_to_grow(1), 4 << 40);
        assert_eq!(room_to_grow(4 << 40), 4 << 40);
        assert_eq!(room_to_grow((4 << 40) + 1), 8 << 40);
        assert_eq!(overlay(Path::new("/x"), 1 << 20).unwrap().len(), 4 * CLUSTER);
        assert_eq!(overlay(Path::new("/x"), BYTES_MAX).unwrap().len(), (3 + 16) * CLUSTER);
    }
}
