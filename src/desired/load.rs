//! A folder of manifests to a [`Desired`] that knows whether it is complete.

mod file;
mod reload;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::hosts::{Belongs, Host, HostIdentity, Viewpoint};
use super::{Declaration, Desired, FileId, Origin, Problem, SourceName, SourceState};
use crate::names::VmName;
use file::{Cached, Declared, Found, Parsed, Reading, Unsettled};
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
    /// Which of its VMs are for this host.
    view: Viewpoint,
    /// Those that are for others alone.
    elsewhere: Arc<BTreeSet<VmName>>,
    /// Whether it lists hosts, or has VMs that are not for every host.
    is_shared: bool,
}

/// What a file says to this host.
struct Said {
    vms: Vec<(VmName, Declaration)>,
    problems: Vec<Problem>,
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
        let valid = self.declared.iter().filter_map(|declared| declared.vm.as_ref().ok());
        valid.flat_map(|vm| vm.spec.disks.iter().map(|disk| &disk.image))
    }
}

impl Loader {
    /// A loader of the folder `root`, which need not exist, for this host; `None`: for all of them.
    pub fn new(source: SourceName, root: PathBuf, here: Option<Arc<HostIdentity>>) -> Self {
        Self {
            source,
            root,
            files: BTreeMap::new(),
            totals: Totals::default(),
            listed: Listed::default(),
            young: BTreeSet::new(),
            view: Viewpoint::new(here),
            elsewhere: Arc::default(),
            is_shared: false,
        }
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
        self.see_hosts();
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
            let Said { vms, problems } = self.said(path, &cached.parsed);
            desired.problems.extend(problems);
            for (name, declaration) in vms {
                // Nearly always the only one: a list that grows by itself begins with room for four.
                desired.vms.entry(name).or_insert_with(|| Vec::with_capacity(1)).push(declaration);
            }
        }
        for declarations in desired.vms.values_mut() {
            declarations.sort_by(|a, b| a.origin.cmp(&b.origin));
        }
        desired.problems.sort();
        desired
    }

    fn state(&self) -> SourceState {
        let hidden = self.listed.hidden.iter().chain(self.totals.hiding.values()).cloned();
        let incomplete = hidden.chain(self.view.gap()).collect();
        let root = self.listed.root.as_ref().map(|(_, id)| *id);
        let empty = self.totals.declarations == 0;
        SourceState { incomplete, root, empty, elsewhere: Arc::clone(&self.elsewhere) }
    }

    /// Takes in which hosts the files list. Where each VM belongs follows from all of them.
    fn see_hosts(&mut self) {
        let parsed = || self.files.values().map(|cached| &cached.parsed);
        let listed: Vec<Host> = parsed().flat_map(|parsed| parsed.hosts.iter().cloned()).collect();
        let broken = parsed().find_map(|parsed| parsed.broken_host.clone());
        self.is_shared = !listed.is_empty() || broken.is_some() || parsed().any(Parsed::has_selectors);
        // What cannot be read may list another host.
        let hidden = self.listed.hidden.iter().chain(self.totals.hiding.values()).next();
        let unclear = broken.or_else(|| self.view.renamed().or(hidden).filter(|_| self.is_shared).cloned());
        self.view.list(listed, unclear);
        self.see_elsewhere();
    }

    /// Takes in which VMs are for other hosts alone.
    fn see_elsewhere(&mut self) {
        let declared = || self.files.values().flat_map(|cached| &cached.parsed.declared);
        let place = |declared: &&Declared| self.view.place(declared.selector.as_deref());
        let mut elsewhere: BTreeSet<VmName> =
            declared().filter(|one| place(one) == Belongs::Elsewhere).map(|one| one.name.clone()).collect();
        if !elsewhere.is_empty() {
            for here in declared().filter(|one| place(one) != Belongs::Elsewhere) {
                elsewhere.remove(&here.name);
            }
        }
        if *self.elsewhere != elsewhere {
            self.elsewhere = Arc::new(elsewhere);
        }
    }

    /// What a file says to this host.
    fn said(&self, path: &Path, parsed: &Parsed) -> Said {
        let mut said = Said { vms: Vec::new(), problems: parsed.problems.clone() };
        for Declared { line, name, vm, selector } in &parsed.declared {
            let vm = match (vm, self.view.place(selector.as_deref())) {
                (_, Belongs::Elsewhere) => continue,
                (Ok(_), Belongs::Refused(message, hint)) => {
                    let place = selector.as_ref().map_or((*line, 1), |selector| selector.place);
                    let (path, hint) = (path.to_owned(), Some(hint.to_owned()));
                    let problem = Problem { path, place: Some(place), message, hint, snippet: None };
                    said.problems.push(problem.clone());
                    Err(vec![problem])
                }
                (vm, _) => vm.clone(),
            };
            let origin = Origin { source: self.source.clone(), path: path.to_owned(), line: *line };
            said.vms.push((name.clone(), Declaration { origin, vm }));
        }
        said
    }

    /// VMs that are declared more than once for one host, and where: of those, no host could tell which to run.
    fn clashes(&self) -> BTreeMap<VmName, Vec<Origin>> {
        let mut by_name: BTreeMap<&VmName, Vec<(&Path, &Declared)>> = BTreeMap::new();
        for (path, cached) in &self.files {
            for declared in &cached.parsed.declared {
                by_name.entry(&declared.name).or_default().push((path, declared));
            }
        }
        let origin = |(path, declared): &(&Path, &Declared)| Origin {
            source: self.source.clone(),
            path: (*path).to_owned(),
            line: declared.line,
        };
        let clash = |(name, all): (&VmName, Vec<(&Path, &Declared)>)| {
            let selectors = all.iter().map(|(_, declared)| declared.selector.as_deref());
            let clashes = all.len() > 1 && self.view.are_for_one_host(selectors);
            clashes.then(|| (name.clone(), all.iter().map(origin).collect()))
        };
        by_name.into_iter().filter_map(clash).collect()
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

/// Reads a text as a file of this name would be, for all hosts.
pub fn load_text(source: SourceName, path: &Path, text: &str) -> Desired {
    of_text(source, path, text).collect()
}

fn of_text(source: SourceName, path: &Path, text: &str) -> Loader {
    let mut loader = Loader::new(source, PathBuf::new(), None);
    loader.keep(path.to_owned(), Reading::Read(Cached::of_text(path, text)));
    loader.see_hosts();
    loader
}

/// What files say that were read together.
#[derive(Default)]
pub struct Together {
    /// To this host, or to all of them.
    pub desired: Desired,
    /// VMs that are declared more than once for one host, whichever, and where.
    pub clashes: BTreeMap<VmName, Vec<Origin>>,
    /// What they say to each host that they list; to all of them where they list none.
    pub views: Vec<Desired>,
    /// Why it cannot be told which of them are for this host, if so.
    pub gap: Option<String>,
}

impl Together {
    fn take(&mut self, mut loader: Loader, desired: Desired) {
        for (name, places) in loader.clashes() {
            self.clashes.entry(name).or_default().extend(places);
        }
        let listed = loader.view.each();
        if listed.is_empty() {
            self.views.push(desired.clone());
        }
        for view in listed {
            loader.view = view;
            loader.see_elsewhere();
            self.views.push(loader.collect());
        }
        self.desired = std::mem::take(&mut self.desired).and(desired);
    }
}

/// Reads a text as `stead validate -` does, for all hosts.
pub fn validate_text(source: SourceName, path: &Path, text: &str) -> Together {
    let loader = of_text(source, path, text);
    let mut together = Together::default();
    let desired = loader.collect();
    together.take(loader, desired);
    together
}

/// Reads files that lie in no folder, for this host: what each holds, by its path.
pub fn load_files(
    source: &SourceName,
    here: &Arc<HostIdentity>,
    files: impl IntoIterator<Item = (PathBuf, Vec<u8>)>,
) -> Together {
    let mut loader = Loader::new(source.clone(), PathBuf::new(), Some(Arc::clone(here)));
    for (path, bytes) in files {
        let cached = Cached::of_bytes(&path, bytes);
        loader.keep(path, Reading::Read(cached));
    }
    loader.see_hosts();
    let gap = loader.view.gap();
    Together { desired: loader.collect(), clashes: loader.clashes(), views: Vec::new(), gap }
}

/// Whether a file of this path below a source's folder is read.
pub fn is_manifest(below: &Path) -> bool {
    walk::is_manifest_name(below) && !below.iter().any(walk::is_hidden)
}

/// Reads files and folders that a user names, as `stead validate` does, for all hosts. Problems carry the paths as they were
/// named. Files that are named one by one are taken for one source.
pub fn validate_paths(paths: &[PathBuf]) -> Together {
    let mut together = Together::default();
    let nobody_writes = BTreeSet::new();
    let (folders, files): (Vec<&PathBuf>, Vec<&PathBuf>) = paths.iter().partition(|path| path.is_dir());
    for path in folders {
        let mut loader = Loader::new(SourceName(path.display().to_string()), path.clone(), None);
        let mut desired = loader.load(&nobody_writes);
        for problem in &mut desired.problems {
            problem.path = path.join(&problem.path);
        }
        together.take(loader, desired);
    }
    if !files.is_empty() {
        let unsettled = Unsettled::new(Path::new(""), &nobody_writes, false);
        let mut loader = Loader::new(SourceName("the files named".to_owned()), PathBuf::new(), None);
        for path in files {
            loader.keep(path.clone(), file::read(path, Found::Content(path.clone()), None, &unsettled));
        }
        loader.see_hosts();
        let desired = loader.collect();
        together.take(loader, desired);
    }
    together
}

/// Device and inode of each of these files; `None` where it cannot be looked at.
pub fn look_at<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> impl Iterator<Item = (PathBuf, Option<FileId>)> {
    paths.map(|path| (path.clone(), file_id(path)))
}

fn file_id(path: &Path) -> Option<FileId> {
    let meta = path.metadata().ok()?;
    Some(FileId::of(&meta))
}
