//! State files: only stead's own are read, and a write is whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::mount::{MsFlags, mount, umount};
use nix::sched::CloneFlags;
use stead::host::linux::LinuxHost;
use stead::host::{HostOps, HostView, StateFileError};

use crate::bed::{host, in_namespaces, is_root};

struct Folder {
    host: std::sync::Arc<LinuxHost>,
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { host: host(), dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        self.host.list_folder(self.dir.path()).unwrap()
    }
}

#[test]
fn what_was_written_is_read_back_and_nobody_else_may_look() {
    let folder = Folder::new();
    let path = folder.path("handles.json");
    assert_eq!(folder.host.read_state_file(&path).unwrap(), None);
    for bytes in [&b"one"[..], b"", b"a longer one"] {
        folder.host.write_durable(&path, bytes).unwrap();
        assert_eq!(folder.host.read_state_file(&path).unwrap().unwrap(), bytes);
        folder.host.write_file(&path, bytes).unwrap();
        assert_eq!(folder.host.read_state_file(&path).unwrap().unwrap(), bytes);
    }
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(folder.names(), ["handles.json"]);
    assert!(folder.host.remove_file(&path, true).unwrap());
    assert!(!folder.host.remove_file(&path, true).unwrap());
}

#[test]
fn a_file_that_others_could_have_written_is_not_believed() {
    let folder = Folder::new();
    let refused = |path: &PathBuf| match folder.host.read_state_file(path) {
        Err(StateFileError::Untrusted(why)) => why,
        other => panic!("{other:?}"),
    };
    let path = folder.path("handles.json");
    fs::write(&path, "{}").unwrap();
    for (mode, believed) in [(0o600, true), (0o644, true), (0o666, false), (0o620, false), (0o602, false)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        if believed {
            assert!(folder.host.read_state_file(&path).unwrap().is_some(), "{mode:o}");
        } else {
            let why = refused(&path);
            assert!(why.contains(&format!("{mode:04o}")) && why.contains("chmod"), "{why}");
        }
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let link = folder.path("link");
    symlink(&path, &link).unwrap();
    assert!(refused(&link).contains("symbolic link"));
    assert!(refused(&folder.dir.path().to_owned()).contains("not a regular file"));
    let fifo = folder.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(refused(&fifo).contains("not a regular file"), "and reading it does not wait");
    let socket = folder.path("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(refused(&socket).contains("not a regular file"));
    let huge = folder.path("huge");
    fs::File::create(&huge).unwrap().set_len(17 << 20).unwrap();
    fs::set_permissions(&huge, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(refused(&huge).contains("longer than 16 MiB"));
    if is_root() {
        chown(&path, Some(1000), None).unwrap();
        assert!(refused(&path).contains("belongs to user 1000"));
    }
}

#[test]
fn a_full_disk_leaves_the_old_file_whole_and_no_temporary() {
    in_namespaces(CloneFlags::CLONE_NEWNS, || {
        let folder = Folder::new();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), folder.dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        let path = folder.path("handles.json");
        folder.host.write_durable(&path, b"old").unwrap();
        let error = folder.host.write_durable(&path, &vec![0; 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(folder.host.read_state_file(&path).unwrap().unwrap(), b"old");
        assert_eq!(folder.names(), ["handles.json"]);
        umount(folder.dir.path()).unwrap();
    });
}

#[test]
fn only_what_a_crashed_write_left_is_swept() {
    let folder = Folder::new();
    let others = [".handles.json.swp", ".x.tmp.12", "handles.json", "handles.json.tmp.1-1-1"];
    for name in others.iter().chain(&[".handles.json.tmp.12-abc-0", ".ledger.json.tmp.7-1f-12"]) {
        fs::write(folder.path(name), "").unwrap();
    }
    assert_eq!(folder.host.sweep_temporaries(folder.dir.path()).unwrap(), 2);
    assert_eq!(folder.names(), others);
    assert_eq!(folder.host.sweep_temporaries(&folder.path("missing")).unwrap(), 0);
}

#[test]
fn what_is_set_aside_is_kept_however_often() {
    let folder = Folder::new();
    let path = folder.path("handles.json");
    assert_eq!(folder.host.set_aside(&path).unwrap(), None);
    for text in ["one", "two", "three"] {
        fs::write(&path, text).unwrap();
        let aside = folder.host.set_aside(&path).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&aside).unwrap(), text);
        assert!(aside.file_name().unwrap().to_str().unwrap().starts_with("handles.json.corrupt-"));
    }
    assert_eq!(folder.names().len(), 3);
    symlink("/nonexistent", &path).unwrap();
    assert!(folder.host.set_aside(&path).unwrap().is_some(), "a dangling link too");
}

#[test]
fn folders_are_made_with_their_parents_for_ourselves_alone() {
    let folder = Folder::new();
    let path = folder.path("a/b/c");
    assert!(folder.host.make_folder(&path).unwrap());
    assert!(!folder.host.make_folder(&path).unwrap());
    assert_eq!(fs::metadata(folder.path("a")).unwrap().mode() & 0o777, 0o700);
    fs::write(folder.path("file"), "").unwrap();
    assert_eq!(folder.host.make_folder(&folder.path("file")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    assert_eq!(folder.host.list_folder(&folder.path("missing")).unwrap(), Vec::<String>::new());
}

#[test]
fn what_cannot_be_opened_is_known_beforehand() {
    let folder = Folder::new();
    let path = folder.path("image");
    let kind = |write| folder.host.check_access(&path, write).unwrap_err().kind();
    assert_eq!(kind(false), io::ErrorKind::NotFound);
    fs::write(&path, "").unwrap();
    folder.host.check_access(&path, true).unwrap();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(kind(false), io::ErrorKind::IsADirectory);
    assert_eq!(folder.host.file_id(&folder.path("missing")).unwrap(), None);
    assert!(folder.host.exists(&path).unwrap() && !folder.host.exists(&folder.path("missing")).unwrap());
}

#[test]
fn a_log_is_cut_to_its_newest_half_while_its_writer_goes_on() {
    let folder = Folder::new();
    let path = folder.path("console.log");
    assert!(!folder.host.trim_log(&path, 100).unwrap());
    let limit = 256 << 10;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut log = OpenOptions::new().append(true).create(true).open(&path).unwrap();
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                writeln!(log, "line {count}").unwrap();
                count += 1;
            }
            count
        });
        for _ in 0..8 {
            crate::bed::wait("the log has grown", || {
                fs::metadata(&path).is_ok_and(|metadata| metadata.len() > limit).then_some(())
            });
            assert!(folder.host.trim_log(&path, limit).unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let numbers: Vec<u64> = text.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
        assert_eq!(numbers.last(), Some(&(written - 1)));
        assert!(numbers.is_sorted(), "no line twice");
        // The first line may be the note that something was cut off.
        assert!(numbers.len() + 1 >= text.lines().count(), "only whole lines");
        println!("lines lost at the cut: {}", numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count());
    });
    assert!(!folder.host.trim_log(&path, u64::MAX).unwrap());
}
