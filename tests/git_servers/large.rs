//! Repositories that are more than this host can hold.

use std::fs;

use nix::mount::{MsFlags, mount};

use crate::bed::{Bed, NAME, done, noise, on_its_own_host};
use crate::daemon::git_daemon;

#[test]
fn a_disk_that_is_full_in_the_middle_of_a_fetch_leaves_room_for_what_comes_after() {
    on_its_own_host(|bed| {
        fs::create_dir(bed.state()).unwrap();
        mount(None::<&str>, &bed.state(), Some("tmpfs"), MsFlags::empty(), Some("size=4m,mode=700")).unwrap();
        bed.follow(&format!("file://{}", bed.origin().display()), "");
        bed.follows(&bed.push("web"));
        bed.push_noise(6 << 20, "more than there is room for");
        for _ in 0..2 {
            bed.stays_since("FetchFailed", "No space left on device");
            assert_eq!(bed.left_behind(), [""; 0]);
        }
        bed.git(&["reset", "--quiet", "--hard", "HEAD~1"]);
        bed.follows(&bed.push("db"));
    });
}

#[test]
fn a_repository_that_is_larger_than_it_may_be_is_said_to_be() {
    on_its_own_host(|bed| {
        let _server = git_daemon(bed, 9418);
        bed.follow(&format!("git://{NAME}/fleet.git"), ", maxSize: 1Mi");
        bed.follows(&bed.push("web"));
        let commit = bed.push_noise(2 << 20, "an image");
        bed.stays_since("FetchFailed", "larger than maxSize, 1048576 bytes");
        assert_eq!(bed.left_behind(), [""; 0]);
        // By one object, as above, or by a pack of many.
        for number in 0..150 {
            fs::write(bed.work().join(number.to_string()), noise(10 << 10)).unwrap();
        }
        bed.git(&["rm", "--quiet", "--cached", "noise"]);
        fs::remove_file(bed.work().join("noise")).unwrap();
        bed.push_all("many files");
        bed.stays_since("FetchFailed", "larger than maxSize, 1048576 bytes");
        assert_eq!(bed.left_behind(), [""; 0]);
        bed.git(&["reset", "--quiet", "--hard", &commit]);
        bed.follow(&format!("git://{NAME}/fleet.git"), "");
        bed.follows(&bed.push("db"));
    });
}

/// A commit more, with a file of so many zeros, which take no room in a repository; gives the commit.
fn push_zeros(bed: &Bed, file: &str, length: u64) -> String {
    fs::File::create(bed.work().join(file)).unwrap().set_len(length).unwrap();
    let quickly = ["-c", "core.compression=1", "-c", "core.bigFileThreshold=1m"];
    bed.git(&[quickly.as_slice(), &["add", file]].concat());
    bed.push_all(file)
}

#[test]
fn a_file_that_is_small_on_the_wire_and_huge_here_takes_neither_memory_nor_disk_nor_long() {
    on_its_own_host(|bed| {
        // Not by file://, whose server would have no more memory than stead.
        let _server = git_daemon(bed, 9418);
        bed.follow(&format!("git://{NAME}/fleet.git"), "");
        bed.follows(&bed.push("web"));
        // What is pushed is there already.
        let objects = bed.work().join(".git/objects").display().to_string();
        fs::write(bed.origin().join("objects/info/alternates"), objects).unwrap();
        // No manifest, so it is none of ours; stead and git get less memory than it has bytes.
        let commit = push_zeros(bed, "disk.img", 500 << 20);
        let line = "ulimit -v 400000; exec \"$0\" sync";
        let synced = bed.for_stead("sh").args(["-c", line, env!("CARGO_BIN_EXE_stead")]).output().unwrap();
        assert!(synced.status.success(), "{}", String::from_utf8_lossy(&synced.stderr));
        assert_eq!(bed.record()["applied"]["commit"], commit.as_str());

        push_zeros(bed, "huge.yaml", 2 << 30);
        bed.stays_since("TreeRefused", "huge.yaml is larger than");
        let kept = kibibytes(bed);
        assert!(kept < 32 << 10, "{kept} KiB");
        bed.git(&["rm", "--quiet", "--cached", "huge.yaml"]);
        fs::remove_file(bed.work().join("huge.yaml")).unwrap();
        bed.follows(&bed.push("db"));
    });
}

/// How many KiB the source takes here.
fn kibibytes(bed: &Bed) -> u64 {
    let printed = done(bed.command("du").arg("-sk").arg(bed.kept()));
    printed.split_ascii_whitespace().next().unwrap().parse().unwrap()
}
