//! A folder of manifests to a [`Desired`] that knows whether it is complete.

mod file;
mod reload;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Declaration, Desired, FileId, Origin, SourceName, SourceState};
use file::{Cached, Found, Parsed, Reading, Unsettled};
use walk::Walk;

pub use reload::Reload;

/// The largest file that is read, in bytes. Some 500 VMs fit; a larger one is a mistake.
pub const FILE_MAX: u64 = 1 << 20;
/// A file that was not written for this long is taken to be whole.
pub const QUIET: Duration = Duration::from_millis(100);
/// Of so many new files a thread of its own is worth its start.
const NEW_A_THREAD: usize = 32;

/// Reads one source, again and again: a file that did not change is neither read nor parsed twice.
#[derive(Debug)]
pub struct Loader {
    source: SourceName,
    root: PathBuf,
    /// What each file said when it was read last, by its path below the root.
    files: BTreeMap<PathBuf, Cached>,
    totals: Totals,
    /// The folder itself, as it was listed last.
    listed: Listed,
    /// Files that the last reading left alone because they are young.
    young: BTreeSet<PathBuf>,
}

/// What a listing found beside files.
#[derive(Debug, Default)]
struct Listed {
    /// The folder by its real path, and what the kernel calls it; `None` when there is none.
    root: Option<(PathBuf, FileId)>,
    /// Why files may be missing from the listing.
    hidden: Vec<String>,
}

/// What all files come to, kept up with each that is read.
#[derive(Debug, Default)]
struct Totals {
    declarations: usize,
    /// Files whose content may change by another name than their own.
    aliases: usize,
    /// Files that may declare more than can be seen, and why.
    hiding: BTreeMap<PathBuf, String>,
    /// How many valid declarations name each image.
    images: BTreeMap<PathBuf, usize>,
}

impl Totals {
    fn add(&mut self, path: &Path, cached: &Cached) {
        self.declarations += cached.parsed.declared.len();
        self.aliases += usize::from(cached.is_alias);
        self.hiding.extend(cached.parsed.hidden.clone().map(|why| (path.to_owned(), why)));
        for image in cached.parsed.images() {
            *self.images.entry(image.clone()).or_default() += 1;
        }
    }

    fn remove(&mut self, path: &Path, cached: &Cached) {
        self.declarations -= cached.parsed.declared.len();
        self.aliases -= usize::from(cached.is_alias);
        self.hiding.remove(path);
        for image in cached.parsed.images() {
            if let Some(count) = self.images.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.images.remove(image);
                }
            }
        }
    }
}

impl Parsed {
    /// The images that its valid declarations name, each as often as it is named.
    fn images(&self) -> impl Iterator<Item = &PathBuf> {
        let valid = self.declared.iter().filter_map(|(_, _, vm)| vm.as_ref().ok());
        valid.flat_map(|vm| vm.spec.disks.iter().map(|disk| &disk.image))
    }
}

impl Loader {
    /// A loader of the folder `root`, which need not exist.
    pub fn new(source: SourceName, root: PathBuf) -> Self {
        let (files, totals, listed, young) = (BTreeMap::new(), Totals::default(), Listed::default(), BTreeSet::new());
        Self { source, root, files, totals, listed, young }
    }

    /// Lists the folder and reads what changed. Of the files in `unsettled`, by their paths below the folder, somebody is
    /// writing: what they said before stays in force.
    pub fn load(&mut self, unsettled: &BTreeSet<PathBuf>) -> Desired {
        self.list(&Unsettled::new(&self.root.clone(), unsettled, false))
    }

    /// The same, and leaves alone every file that was written within [`QUIET`] and that it does not know as it is now, for
    /// somebody may be writing it still, and word of that be on its way. [`Loader::young`] has their names.
    pub fn load_settled(&mut self, unsettled: &BTreeSet<PathBuf>) -> Desired {
        self.list(&Unsettled::new(&self.root.clone(), unsettled, true))
    }

    /// The folder, as it was named.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether a valid declaration names this image.
    pub(super) fn names_image(&self, image: &Path) -> bool {
        self.totals.images.contains_key(image)
    }

    /// What the last reading found.
    pub fn as_read(&self) -> Desired {
        self.collect()
    }

    /// Files that the last reading left alone only because they were written within [`QUIET`].
    pub fn young(&self) -> &BTreeSet<PathBuf> {
        &self.young
    }

    fn list(&mut self, unsettled: &Unsettled<'_>) -> Desired {
        let mut walk = Walk::default();
        let root = match walk::root_of(&self.root) {
            Ok((canonical, id)) => {
                walk.folder(&self.root, &canonical, Path::new(""), 0);
                Some((canonical, id))
            }
            Err(why) => {
                walk.hidden.push(why);
                None
            }
        };
        self.listed = Listed { root, hidden: walk.hidden };
        self.totals = Totals::default();
        self.young.clear();
        let mut before = std::mem::take(&mut self.files);
        let files = walk.files.into_iter().map(|(path, found)| (before.remove(&path), path, found));
        for (path, reading) in read_all(files.collect(), unsettled) {
            self.keep(path, reading);
        }
        self.collect()
    }

    /// Takes in what a file that is not known, or no more, says.
    fn keep(&mut self, path: PathBuf, reading: Reading) {
        let cached = match reading {
            Reading::Read(cached) => cached,
            Reading::Young(cached) => {
                self.young.insert(path.clone());
                cached
            }
        };
        self.totals.add(&path, &cached);
        self.files.insert(path, cached);
    }

    fn collect(&self) -> Desired {
        let mut desired = Desired {
            sources: BTreeMap::from([(self.source.clone(), self.state())]),
            images: look_at(self.totals.images.keys()).filter_map(|(path, id)| Some((path, id?))).collect(),
            ..Desired::default()
        };
        for (path, cached) in &self.files {
            desired.problems.extend(cached.parsed.problems.iter().cloned());
            for (name, declaration) in self.declarations(path, &cached.parsed) {
                desired.vms.entry(name).or_default().push(declaration);
            }
        }
        for declarations in desired.vms.values_mut() {
            declarations.sort_by(|a, b| a.origin.cmp(&b.origin));
        }
        desired.problems.sort();
        desired
    }

    fn state(&self) -> SourceState {
        let incomplete = self.listed.hidden.iter().chain(self.totals.hiding.values()).cloned().collect();
        let root = self.listed.root.as_ref().map(|(_, id)| *id);
        SourceState { incomplete, root, empty: self.totals.declarations == 0 }
    }

    fn declarations<'a>(
        &'a self,
        path: &'a Path,
        parsed: &'a Parsed,
    ) -> impl Iterator<Item = (crate::names::VmName, Declaration)> + 'a {
        parsed.declared.iter().map(|(line, name, vm)| {
            let origin = Origin { source: self.source.clone(), path: path.to_owned(), line: *line };
            (name.clone(), Declaration { origin, vm: vm.clone() })
        })
    }

    /// How long until no file that was listed last has been written within [`QUIET`]; `None` when that is so now. For
    /// whoever has no events to tell that a file is whole.
    pub fn settle_for(&self) -> Option<Duration> {
        let now = file::wall_clock();
        let stamps = self.files.values().filter_map(|cached| cached.stamp.as_ref());
        let youngest = stamps.map(|stamp| stamp.age(now)).min()?;
        QUIET.checked_sub(youngest).filter(|left| !left.is_zero())
    }
}

/// Reads files, in their order. Many that are new are read by as many threads as the host runs at once: of a thousand, parsing
/// takes a tenth of a second, and a stead that begins does nothing before it has read them all.
fn read_all(files: Vec<(Option<Cached>, PathBuf, Found)>, unsettled: &Unsettled<'_>) -> Vec<(PathBuf, Reading)> {
    let new = files.iter().filter(|(known, ..)| known.is_none()).count();
    let threads = match new / NEW_A_THREAD {
        // Asking how many CPUs there are takes as long as reading a few files.
        few @ (0 | 1) => few,
        many => std::thread::available_parallelism().map_or(1, usize::from).min(many),
    };
    let queue = Mutex::new(files.into_iter().enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut readings = Vec::new();
        while let Some((place, (known, path, found))) = next() {
            let reading = file::read(&path, found, known, unsettled);
            readings.push((place, path, reading));
        }
        readings
    };
    let mut readings = std::thread::scope(|scope| {
        // Where no thread can be had, the others do its share.
        let others: Vec<_> =
            (1..threads).filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut readings = work();
        for other in others {
            readings.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        readings
    });
    readings.sort_unstable_by_key(|(place, ..)| *place);
    readings.into_iter().map(|(_, path, reading)| (path, reading)).collect()
}

/// Reads a text as a file of this name would be: for `stead validate -` and for tests.
pub fn load_text(source: SourceName, path: &Path, text: &str) -> Desired {
    let mut loader = Loader::new(source, PathBuf::new());
    loader.keep(path.to_owned(), Reading::Read(Cached::of_text(path, text)));
    loader.collect()
}

/// Reads files that lie in no folder: what each holds, by its path.
pub fn load_files(source: &SourceName, files: impl IntoIterator<Item = (PathBuf, Vec<u8>)>) -> Desired {
    let mut loader = Loader::new(source.clone(), PathBuf::new());
    for (path, bytes) in files {
        let cached = Cached::of_bytes(&path, bytes);
        loader.keep(path, Reading::Read(cached));
    }
    loader.collect()
}

/// Whether a file of this path below a source's folder is read.
pub fn is_manifest(below: &Path) -> bool {
    walk::is_manifest_name(below) && !below.iter().any(walk::is_hidden)
}

/// Reads files and folders that a user names, as `stead validate` does. Problems carry the paths as they were named.
pub fn validate_paths(paths: &[PathBuf]) -> Desired {
    let mut all = Desired::default();
    let nobody_writes = BTreeSet::new();
    for path in paths {
        let source = SourceName(path.display().to_string());
        let mut desired = if path.is_dir() {
            Loader::new(source, path.clone()).load(&nobody_writes)
        } else {
            let unsettled = Unsettled::new(Path::new(""), &nobody_writes, false);
            let mut loader = Loader::new(source, PathBuf::new());
            loader.keep(path.clone(), file::read(path, Found::Content(path.clone()), None, &unsettled));
            loader.collect()
        };
        if path.is_dir() {
            for problem in &mut desired.problems {
                problem.path = path.join(&problem.path);
            }
        }
        all.sources.append(&mut desired.sources);
        all.images.append(&mut desired.images);
        all.problems.append(&mut desired.problems);
        for (name, declarations) in desired.vms {
            all.vms.entry(name).or_default().extend(declarations);
        }
    }
    all
}

/// Device and inode of each of these files; `None` where it cannot be looked at.
pub fn look_at<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> impl Iterator<Item = (PathBuf, Option<FileId>)> {
    paths.map(|path| (path.clone(), file_id(path)))
}

fn file_id(path: &Path) -> Option<FileId> {
    let meta = path.metadata().ok()?;
    Some(FileId::of(&meta))
}
