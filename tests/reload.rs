//! Reading only what changed comes to the same as reading everything: whatever happens in a folder, in whatever order, and
//! however much of it is heard of at once.
//!
//! `STEAD_FOLDERS=n` has so many histories of a folder. A seed repeats one nearly, not to the last step: the kernel tells of it
//! in its own time.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stead::desired::delta::Delta;
use stead::desired::hosts::{HostIdentity, Labels};
use stead::desired::load::{Loader, Reload};
use stead::desired::watch::{Change, Watch};
use stead::desired::{Desired, SourceName};
use stead::host::sim::Random;

const PATHS: &[&str] = &[
    "a.yaml",
    "b.yaml",
    "c.json",
    "note.txt",
    ".a.yaml",
    "sub",
    "sub/a.yaml",
    "sub/d.yaml",
    "sub/deep",
    "sub/deep/e.yaml",
    ".v1",
    ".v1/a.yaml",
    ".v1/f.yaml",
    "other",
    "other/a.yaml",
    "other/g.yaml",
];

/// Who follows a folder by what the watch tells, as the loop does.
struct Follower {
    root: PathBuf,
    watch: Watch,
    loader: Loader,
    desired: Desired,
    /// How often only what changed was read, and how often everything.
    parts: usize,
    listings: usize,
}

fn loader(root: &Path) -> Loader {
    let here = HostIdentity::new("a1".into(), Labels::new(), None, "x86_64".into());
    Loader::new(SourceName("test".into()), root.to_owned(), Some(Arc::new(here)))
}

impl Follower {
    fn new(root: &Path) -> Self {
        let (watch, loader) = (Watch::start(root.to_owned()), loader(root));
        let mut follower =
            Self { root: root.to_owned(), watch, loader, desired: Desired::default(), parts: 0, listings: 0 };
        follower.take_up(&Change { everything: true, ..Change::default() });
        follower
    }

    fn take_up(&mut self, change: &Change) {
        let unsettled = self.watch.unsettled();
        let reload = if change.everything {
            Reload::ListAll
        } else {
            self.loader.reload(&change.files, &unsettled, &self.desired)
        };
        match reload {
            Reload::Nothing => {}
            Reload::Changed(delta) => {
                self.desired.apply(delta);
                self.parts += 1;
            }
            Reload::ListAll => {
                self.watch.cover();
                let listed = self.loader.load_settled(&self.watch.unsettled());
                self.watch.look_again(self.loader.young());
                self.desired.apply(Delta::between(&self.desired, listed.clone()));
                assert_eq!(self.desired, listed, "what differs makes one of the other");
                self.listings += 1;
            }
        }
    }

    /// Takes in what is told within this time, once.
    async fn listen(&mut self, wait: Duration) -> Change {
        let change = tokio::time::timeout(wait, self.watch.next()).await.unwrap_or_default();
        if change != Change::default() {
            self.take_up(&change);
        }
        change
    }

    /// Takes in everything that happened until now.
    async fn catch_up(&mut self) {
        let begin = Instant::now();
        let mut marks = BTreeSet::new();
        for number in 0.. {
            assert!(begin.elapsed() < Duration::from_secs(30), "nothing is told of {}", self.root.display());
            // Events come in their order. One more after some time: the folder may not have been watched.
            let mark = PathBuf::from(format!("mark-{number}.txt"));
            fs::write(self.root.join(&mark), "").unwrap();
            marks.insert(mark);
            if !self.listen(Duration::from_millis(200)).await.files.is_disjoint(&marks) {
                break;
            }
        }
        while !self.watch.unsettled().is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(30), "{:?} do not settle", self.watch.unsettled());
            self.listen(Duration::from_millis(200)).await;
        }
    }
}

/// A manifest, sound or not.
fn text(random: &mut Random, images: &Path) -> String {
    let mut documents = Vec::new();
    for _ in 0..random.below(3) {
        let name = random.choose(&["w", "x", "y", "z"]).unwrap();
        let image = images.join(random.choose(&["one.img", "link.img", "none.img"]).unwrap());
        let cpus = random.below(4);
        let selector = match random.below(6) {
            0 => "\n  hostSelector: {matchLabels: {stead.dev/hostname: a1}}",
            1 => "\n  hostSelector: {matchLabels: {stead.dev/hostname: a2}}",
            2 => "\n  hostSelector: {matchLabels: {zone: north}}",
            _ => "",
        };
        documents.push(match random.below(10) {
            0 => "a: [".to_owned(),
            1 => "kind: VirtualMachine\n".to_owned(),
            2 => format!("apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\n"),
            // Rarely: while hosts are listed, every change of that list is one of everything.
            3 if random.is(1, 3) => {
                let host = random.choose(&["a1", "a2", "a3 x"]).unwrap();
                format!("apiVersion: stead.dev/v1alpha1\nkind: Host\nmetadata: {{name: {host}, labels: {{zone: north}}}}\n")
            }
            _ => format!(
                "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\nspec:\n  cpus: {cpus}\n  \
                 memory: 1Mi\n  boot: {{kernel: /k}}\n  disks: [{{name: root, image: {}, mode: direct}}]{selector}\n",
                image.display()
            ),
        });
    }
    documents.join("---\n")
}

/// Something happens in the folder. What cannot, as in a folder that is not there, does not.
async fn happen(random: &mut Random, root: &Path, follower: &mut Follower) -> String {
    let images = root.parent().unwrap();
    let pick = |random: &mut Random| *random.choose(PATHS).unwrap();
    let (one, other) = (pick(random), pick(random));
    let (path, target) = (root.join(one), root.join(other));
    let what = random.below(14);
    let done = match what {
        0..=2 => fs::write(&path, text(random, images)),
        3 | 4 => {
            let hidden = root.join(".new");
            fs::write(&hidden, text(random, images)).and_then(|()| fs::rename(hidden, &path))
        }
        5 => match fs::File::create(&path) {
            Ok(mut file) => {
                let text = text(random, images);
                for piece in text.as_bytes().chunks(text.len() / 2 + 1) {
                    file.write_all(piece).unwrap();
                    follower.listen(Duration::from_millis(random.below(3))).await;
                }
                Ok(())
            }
            Err(error) => Err(error),
        },
        6 | 7 => fs::rename(&path, &target),
        8 => fs::remove_file(&path),
        9 => fs::remove_dir_all(&path),
        10 => fs::create_dir(&path),
        11 => symlink(&target, &path),
        12 => fs::hard_link(&target, &path),
        _ if random.is(1, 4) => {
            // Another folder in its place, with what was put there before.
            let new = images.join("new");
            fs::create_dir_all(&new).unwrap();
            fs::write(new.join("b.yaml"), text(random, images)).unwrap();
            let old = images.join(format!("old-{}", random.below(u64::MAX)));
            fs::rename(root, old).and_then(|()| fs::rename(new, root))
        }
        _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o600)),
    };
    format!("{what}: {one} {other}: {done:?}")
}

/// A link that leads nowhere keeps declaring what it did: of that, who reads everything for the first time knows nothing.
fn remove_broken_links(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            remove_broken_links(&path);
        } else if kind.is_symlink() && !path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn what_is_read_event_by_event_is_what_a_full_listing_reads() {
    let count = std::env::var("STEAD_FOLDERS").ok().and_then(|count| count.parse().ok()).unwrap_or(40);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (mut parts, mut listings) = (0, 0);
    for seed in 0..count {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().canonicalize().unwrap().join("manifests");
        fs::create_dir(&root).unwrap();
        fs::write(base.path().join("one.img"), "").unwrap();
        symlink("one.img", base.path().join("link.img")).unwrap();
        let mut random = Random::new(seed);
        let mut follower = Follower::new(&root);
        let mut history = Vec::new();
        runtime.block_on(async {
            for _ in 0..random.below(25) {
                history.push(happen(&mut random, &root, &mut follower).await);
                if random.is(1, 3) {
                    follower.listen(Duration::from_millis(random.below(4))).await;
                }
            }
            remove_broken_links(&root);
            follower.catch_up().await;
            // Links may have been broken by what was broken.
            remove_broken_links(&root);
            follower.catch_up().await;
        });
        let whole = loader(&root).load(&BTreeSet::new());
        assert_eq!(follower.desired, whole, "seed {seed}: {history:#?}");
        parts += follower.parts;
        listings += follower.listings;
    }
    assert!(parts > 20 && listings > 20, "{parts} parts, {listings} listings: both ways are to be taken");
}

#[test]
fn a_file_that_changes_among_many_is_the_only_one_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = |name: &str| {
        format!(
            "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\nspec: {{memory: 1Mi, boot: {{kernel: /k}}}}\n"
        )
    };
    for number in 0..20 {
        fs::write(folder.path().join(format!("{number}.yaml")), manifest(&format!("vm-{number}"))).unwrap();
    }
    let mut loader = loader(folder.path());
    let before = loader.load(&BTreeSet::new());
    for (file, name) in [("3.yaml", "three"), ("4.yaml", "four"), ("new.yaml", "new")] {
        fs::write(folder.path().join(file), manifest(name)).unwrap();
    }
    fs::remove_file(folder.path().join("5.yaml")).unwrap();
    let named = ["3.yaml", "5.yaml", "new.yaml", ".hidden", "note.txt"].map(PathBuf::from).into();
    let Reload::Changed(delta) = loader.reload(&named, &BTreeSet::new(), &before) else { panic!("it is all known") };
    let changed: Vec<String> = delta.vms.keys().map(ToString::to_string).collect();
    assert_eq!(changed, ["new", "three", "vm-3", "vm-5"]);
    let named = [".hidden", "note.txt", "gone"].map(PathBuf::from).into();
    assert_eq!(loader.reload(&named, &BTreeSet::new(), &before), Reload::Nothing);
}

#[test]
fn a_new_file_that_is_being_written_may_declare_whoever_else_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("web.yaml"), "").unwrap();
    let mut loader = loader(folder.path());
    let before = loader.load(&BTreeSet::new());
    fs::rename(folder.path().join("web.yaml"), folder.path().join("web.old")).unwrap();
    fs::write(folder.path().join("web2.yaml"), "").unwrap();
    let (named, unsettled) = (["web.yaml".into()].into(), ["web2.yaml".into()].into());
    let Reload::Changed(delta) = loader.reload(&named, &unsettled, &before) else { panic!("it is all known") };
    let mut desired = before;
    desired.apply(delta);
    assert!(desired.sources.values().all(|source| !source.is_complete()), "{desired:?}");
}

#[test]
fn many_new_files_say_together_what_they_say_one_after_the_other() {
    let (folder, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut random = Random::new(5);
    let (mut one_by_one, mut last) = (loader(folder.path()), Desired::default());
    for number in 0..200 {
        fs::write(folder.path().join(format!("{number}.yaml")), text(&mut random, images.path())).unwrap();
        if number % 20 == 19 {
            last = one_by_one.load(&BTreeSet::new());
        }
    }
    assert!(last.vms.len() == 4 && !last.problems.is_empty());
    assert_eq!(loader(folder.path()).load(&BTreeSet::new()), last);
}
