//! Images: sparse files, copies in slices, renames.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use stead::host::devices::{Copied, DeviceOps, DeviceView};

use crate::bed::{host, in_namespaces};

const SLICE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// An image of 64 MiB, of which one MiB in the middle and the last sector are no hole.
fn image(folder: &Path) -> PathBuf {
    let path = folder.join("image");
    let file = File::create(&path).unwrap();
    file.set_len(64 * MIB).unwrap();
    file.write_all_at(&vec![7; 1 << 20], 32 * MIB).unwrap();
    file.write_all_at(&[9; 512], 64 * MIB - 512).unwrap();
    file.sync_all().unwrap();
    path
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_sparse_file_takes_no_space_grows_and_never_shrinks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cow");
    let host = host();
    assert!(host.make_sparse_file(&path, 8 * MIB).unwrap());
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), metadata.blocks(), metadata.permissions().mode() & 0o777), (8 * MIB, 0, 0o600));
    assert!(!host.make_sparse_file(&path, 8 * MIB).unwrap());
    assert!(!host.make_sparse_file(&path, MIB).unwrap());
    assert!(host.make_sparse_file(&path, 16 * MIB).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), 16 * MIB);
    assert_eq!(names(folder.path()), ["cow"]);

    symlink(&path, folder.path().join("link")).unwrap();
    assert!(host.make_sparse_file(&folder.path().join("link"), 32 * MIB).is_err());
    assert_eq!(fs::metadata(&path).unwrap().len(), 16 * MIB, "a link was followed");
}

#[test]
fn an_image_is_told_by_its_inode_length_and_time_of_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let host = host();
    let found = host.image(&path).unwrap().unwrap();
    assert_eq!(found.bytes, 64 * MIB);
    symlink(&path, folder.path().join("link")).unwrap();
    assert_eq!(host.image(&folder.path().join("link")).unwrap(), Some(found));
    fs::rename(&path, folder.path().join("other")).unwrap();
    assert_eq!(host.image(&path).unwrap(), None);
    assert_eq!(host.image(&folder.path().join("other")).unwrap(), Some(found));
    File::options().write(true).open(folder.path().join("other")).unwrap().write_all_at(b"x", 0).unwrap();
    assert_ne!(host.image(&folder.path().join("other")).unwrap(), Some(found));
    assert!(host.image(folder.path()).unwrap_err().to_string().contains("is a folder"));
}

#[test]
fn a_copy_keeps_its_holes_and_gets_its_name_last() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (image(folder.path()), folder.path().join("copy.img"));
    let host = host();
    let expected = host.image(&from).unwrap().unwrap();
    // Not longer than an instant: one step of it in each call.
    let mut parts = 0;
    loop {
        match host.copy_image(&from, &expected, &to, 128 * MIB, Duration::ZERO).unwrap() {
            Copied::Done { .. } => break,
            Copied::Part { bytes, of } => {
                assert!(bytes <= of && of == 64 * MIB);
                assert!(!to.exists(), "half a copy has its name");
                parts += 1;
                assert!(parts < 100);
            }
        }
    }
    assert!(parts >= 1, "it was not copied in slices");
    let (copy, image) = (fs::read(&to).unwrap(), fs::read(&from).unwrap());
    assert_eq!(copy.len() as u64, 128 * MIB);
    assert!(copy[..image.len()] == image[..] && copy[image.len()..].iter().all(|byte| *byte == 0));
    let metadata = fs::metadata(&to).unwrap();
    assert!(metadata.blocks() * 512 < 4 * MIB, "its holes were filled: {} blocks", metadata.blocks());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(names(folder.path()), ["copy.img", "image"]);
    // Once it is there it is the VM's: nothing is copied over it.
    fs::write(&to, "the guest's").unwrap();
    assert_eq!(host.copy_image(&from, &expected, &to, MIB, SLICE).unwrap(), Copied::Done { shared: false });
    assert_eq!(fs::read(&to).unwrap(), b"the guest's");
}

#[test]
fn an_image_that_changes_while_it_is_copied_gives_no_copy() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (image(folder.path()), folder.path().join("copy.img"));
    let host = host();
    let expected = host.image(&from).unwrap().unwrap();
    let first = host.copy_image(&from, &expected, &to, MIB, Duration::ZERO).unwrap();
    assert!(matches!(first, Copied::Part { .. }), "{first:?}");
    File::options().write(true).open(&from).unwrap().write_all_at(b"x", 0).unwrap();
    let error = host.copy_image(&from, &expected, &to, MIB, SLICE).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StaleNetworkFileHandle);
    assert_eq!(names(folder.path()), ["image"]);
    // As it is now, from the beginning.
    let expected = host.image(&from).unwrap().unwrap();
    assert_eq!(host.copy_image(&from, &expected, &to, MIB, SLICE).unwrap(), Copied::Done { shared: false });
    assert_eq!(fs::read(&to).unwrap()[0], b'x');
}

/// What a crash let through to the disk is not known: a part that another process left is not gone on with.
#[test]
fn what_a_crash_left_of_a_copy_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (image(folder.path()), folder.path().join("copy.img"));
    fs::write(folder.path().join(".copy.img.part"), vec![1; 40 << 20]).unwrap();
    let host = host();
    let expected = host.image(&from).unwrap().unwrap();
    host.copy_image(&from, &expected, &to, 0, SLICE).unwrap();
    assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
    assert_eq!(names(folder.path()), ["copy.img", "image"]);
}

#[test]
fn a_copy_that_finds_no_room_says_so_and_leaves_nothing() {
    in_namespaces(CloneFlags::CLONE_NEWNS, || {
        let folder = tempfile::tempdir().unwrap();
        let small = folder.path().join("small");
        fs::create_dir(&small).unwrap();
        mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=512k")).unwrap();
        let from = image(folder.path());
        let host = host();
        let expected = host.image(&from).unwrap().unwrap();
        let error = host.copy_image(&from, &expected, &small.join("copy.img"), 0, SLICE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        assert!(error.to_string().contains("64 MiB"), "{error}");
        assert_eq!(names(&small), Vec::<String>::new());
    });
}

#[test]
fn a_rename_replaces_nothing_and_a_part_is_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let host = host();
    assert!(!host.rename_durable(&at("a"), &at("b")).unwrap());
    fs::create_dir(at("a")).unwrap();
    fs::write(at("a/disk"), "12345678").unwrap();
    assert!(host.rename_durable(&at("a"), &at("b")).unwrap());
    fs::create_dir(at("a")).unwrap();
    assert_eq!(host.rename_durable(&at("a"), &at("b")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    host.overwrite(&at("b/disk"), 2, b"xy").unwrap();
    assert_eq!(fs::read(at("b/disk")).unwrap(), b"12xy5678");

    fs::write(at("outside"), "").unwrap();
    symlink(at("outside"), at("b/link")).unwrap();
    assert!(host.remove_folder(&at("b")).unwrap());
    assert!(!host.remove_folder(&at("b")).unwrap());
    assert!(at("outside").exists(), "a link was followed");
    assert!(host.remove_folder(&at("outside")).is_err());
}
