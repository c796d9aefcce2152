//! A folder of manifests to a [`Desired`] that knows whether it is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::structure::Finding;
use super::validate::{self, Judged};
use super::{Declaration, Desired, FileId, Origin, Problem, SourceName, SourceState, yaml};
use crate::names::VmName;
use crate::spec::Vm;

/// The largest file that is read, in bytes. Some 500 VMs fit; a larger one is a mistake.
pub const FILE_MAX: u64 = 1 << 20;
/// How deep sub-folders are read.
const DEPTH_MAX: usize = 16;
/// How many files a source may have.
const FILES_MAX: usize = 100_000;
/// A file that was not written for this long is taken to be whole.
pub const QUIET: Duration = Duration::from_millis(100);

/// Reads one source, again and again: a file that did not change is neither read nor parsed twice.
#[derive(Debug)]
pub struct Loader {
    source: SourceName,
    root: PathBuf,
    /// What each file said when it was read last, by its path below the root. Stale when its stamp differs.
    files: BTreeMap<PathBuf, Cached>,
}

#[derive(Debug)]
struct Cached {
    stamp: Option<Stamp>,
    parsed: Parsed,
}

/// What changes when a file does (stat(2)). The change time cannot be set by anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    id: FileId,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            id: FileId { device: meta.dev(), inode: meta.ino() },
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// How long ago the file was written; zero when its times lie ahead.
    fn age(&self, now: SystemTime) -> Duration {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = self.changed.max(self.modified);
        let written = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        since_epoch.saturating_sub(written)
    }
}

/// A VM that one document declares: its line, its name, and itself or what is wrong with it.
type Declared = (u64, VmName, Result<Arc<Vm>, Vec<Problem>>);

/// What one file declares.
#[derive(Debug, Clone, Default)]
struct Parsed {
    declared: Vec<Declared>,
    problems: Vec<Problem>,
    /// Why it may declare more than can be seen.
    hidden: Option<String>,
}

impl Loader {
    /// A loader of the folder `root`, which need not exist.
    pub fn new(source: SourceName, root: PathBuf) -> Self {
        Self { source, root, files: BTreeMap::new() }
    }

    /// Lists the folder and reads what changed. Of the files in `unsettled`, by full path, somebody is writing: what they
    /// said before stays in force.
    pub fn load(&mut self, unsettled: &BTreeSet<PathBuf>) -> Desired {
        let mut walk = Walk::default();
        let root = match root_of(&self.root) {
            Ok((canonical, id)) => {
                walk.folder(&self.root, &canonical, Path::new(""), 0);
                Some(id)
            }
            Err(why) => {
                walk.hidden.push(why);
                None
            }
        };
        let mut before = std::mem::take(&mut self.files);
        for (path, file) in walk.files {
            let known = before.remove(&path);
            let cached =
                if unsettled.contains(&self.root.join(&path)) { known } else { Some(read_if_new(&path, file, known)) };
            let cached = cached.unwrap_or_else(|| Cached {
                stamp: None,
                parsed: Parsed { hidden: Some(format!("{} is being written", path.display())), ..Parsed::default() },
            });
            self.files.insert(path, cached);
        }
        self.collect(root, walk.hidden, walk.problems)
    }

    fn collect(&self, root: Option<FileId>, mut incomplete: Vec<String>, mut problems: Vec<Problem>) -> Desired {
        let mut vms: BTreeMap<VmName, Vec<Declaration>> = BTreeMap::new();
        let mut images = BTreeMap::new();
        for (path, cached) in &self.files {
            incomplete.extend(cached.parsed.hidden.clone());
            problems.extend(cached.parsed.problems.iter().cloned());
            for (line, name, vm) in &cached.parsed.declared {
                if let Ok(vm) = vm {
                    let paths = vm.spec.disks.iter().map(|disk| &disk.image);
                    images.extend(paths.filter_map(|path| Some((path.clone(), file_id(path)?))));
                }
                let origin = Origin { source: self.source.clone(), path: path.clone(), line: *line };
                vms.entry(name.clone()).or_default().push(Declaration { origin, vm: vm.clone() });
            }
        }
        for declarations in vms.values_mut() {
            declarations.sort_by(|a, b| a.origin.cmp(&b.origin));
        }
        problems.sort();
        let state = SourceState { incomplete, root, empty: vms.is_empty() };
        Desired { sources: BTreeMap::from([(self.source.clone(), state)]), vms, images, problems }
    }

    /// How long until no file that was listed last has been written within [`QUIET`]; `None` when that is so now. For
    /// whoever has no events to tell that a file is whole.
    pub fn settle_for(&self) -> Option<Duration> {
        let now = wall_clock();
        let stamps = self.files.values().filter_map(|cached| cached.stamp.as_ref());
        let youngest = stamps.map(|stamp| stamp.age(now)).min()?;
        QUIET.checked_sub(youngest).filter(|left| !left.is_zero())
    }
}

/// A file on the way: where its content lies, or why it cannot be read.
enum Found {
    Content(PathBuf),
    Unreadable(Problem),
}

/// One listing of a folder and its sub-folders.
#[derive(Default)]
struct Walk {
    files: Vec<(PathBuf, Found)>,
    problems: Vec<Problem>,
    /// Why files may be missing from the listing.
    hidden: Vec<String>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, canonical_root: &Path, below: &Path, depth: usize) {
        let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            // It went away between being listed and being opened: its absence is an event of its own.
            Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => return,
            Err(error) => {
                return self.hidden.push(format!("the folder {} cannot be listed: {error}", folder.display()));
            }
        };
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let below = below.join(&name);
            let Ok(kind) = entry.file_type() else { continue };
            // Dot names: editors' swap files, version control, and the versions behind a `..data` link.
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if kind.is_dir() {
                if depth == DEPTH_MAX {
                    self.hidden.push(format!("{}: folders deeper than {DEPTH_MAX} are not read", below.display()));
                } else {
                    self.folder(&entry.path(), canonical_root, &below, depth + 1);
                }
            } else if is_manifest_name(&below) {
                if self.files.len() == FILES_MAX {
                    self.hidden.push(format!("more than {FILES_MAX} manifests; {} and all after it", below.display()));
                    return;
                }
                if let Some(found) = find(&entry.path(), kind, canonical_root, &below) {
                    self.files.push((below, found));
                }
            }
        }
    }
}

/// Where the content of an entry lies; `None` when it went away.
fn find(path: &Path, kind: std::fs::FileType, canonical_root: &Path, below: &Path) -> Option<Found> {
    let refuse = |message: &str, hint: &str| Some(Found::Unreadable(whole_file(below, message, Some(hint))));
    if kind.is_file() {
        return Some(Found::Content(path.to_owned()));
    }
    if !kind.is_symlink() {
        return refuse(
            "this is no regular file",
            "remove it, or give it a name that does not end in .yaml, .yml or .json",
        );
    }
    match path.canonicalize() {
        Ok(target) if target.starts_with(canonical_root) => Some(Found::Content(target)),
        Ok(target) => {
            let message = format!("this link leads out of the folder, to {}", target.display());
            refuse(&message, "links are followed inside the manifest folder only; put the file itself here")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => None,
        Err(error) => refuse(&format!("this link leads nowhere: {error}"), "remove it, or mend its target"),
    }
}

fn is_manifest_name(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"))
}

/// Reads a file, unless what is known of it still holds. One that cannot be read keeps declaring what it did, as invalid.
fn read_if_new(below: &Path, found: Found, known: Option<Cached>) -> Cached {
    let path = match found {
        Found::Content(path) => path,
        Found::Unreadable(problem) => return unreadable(problem, known),
    };
    let opened = match open(&path) {
        Ok(opened) => opened,
        Err(message) => return unreadable(whole_file(below, &message, None), known),
    };
    let (file, stamp) = opened;
    // A second write within one tick of the file system's clock leaves no trace in the times.
    let is_young = stamp.age(wall_clock()) < Duration::from_millis(50);
    match known {
        Some(known) if known.stamp.as_ref() == Some(&stamp) && !is_young => return known,
        _ => {}
    }
    match read_text(file, &stamp) {
        Ok(text) => Cached { stamp: Some(stamp), parsed: parse(below, &text) },
        Err((message, hint)) => {
            let mut cached = unreadable(whole_file(below, &message, hint), known);
            cached.stamp = Some(stamp);
            cached
        }
    }
}

fn unreadable(problem: Problem, known: Option<Cached>) -> Cached {
    let declared = known.map(|known| known.parsed.declared).unwrap_or_default();
    let keep = |(line, name, _)| (line, name, Err(vec![problem.clone()]));
    let declared = declared.into_iter().map(keep).collect();
    let hidden = Some(format!("{} cannot be read", problem.path.display()));
    Cached { stamp: None, parsed: Parsed { declared, problems: vec![problem], hidden } }
}

/// Opens without waiting for a writer (a FIFO), without following a link (it was resolved and may have been replaced since).
fn open(path: &Path) -> Result<(File, Stamp), String> {
    use nix::fcntl::OFlag;
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = file.map_err(|error| format!("it cannot be opened: {error}"))?;
    let meta = file.metadata().map_err(|error| format!("it cannot be looked at: {error}"))?;
    if !meta.is_file() {
        return Err("this is no regular file".to_owned());
    }
    Ok((file, Stamp::of(&meta)))
}

fn read_text(file: File, stamp: &Stamp) -> Result<String, (String, Option<&'static str>)> {
    let too_large = || (format!("the file is larger than {FILE_MAX} bytes"), Some("split it; one file a VM is usual"));
    if stamp.size > FILE_MAX {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|error| (format!("reading it failed: {error}"), None))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(too_large());
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err((format!("there is a NUL byte at offset {at}: this is no text"), None));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        (format!("the file is not UTF-8, first at offset {at}"), Some("convert it with iconv"))
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Judges every document of a text.
fn parse(path: &Path, text: &str) -> Parsed {
    let lines: Vec<&str> = text.lines().collect();
    let problem = |finding: Finding| problem_at(path, &lines, finding);
    let mut parsed = Parsed::default();
    for document in yaml::documents(text) {
        match document.tree {
            Err(error) => {
                parsed.problems.push(problem(Finding {
                    place: error.place.unwrap_or((document.line, 1)),
                    message: error.message,
                    hint: tab_hint(&lines, error.place),
                }));
                parsed.hidden = Some(format!("{} has a document that cannot be read", path.display()));
            }
            Ok(tree) => match validate::judge(&tree) {
                Judged::Vm(vm) => parsed.declared.push((document.line, vm.name.clone(), Ok(Arc::new(vm)))),
                Judged::Broken(name, findings) => {
                    let problems: Vec<Problem> = findings.into_iter().map(problem).collect();
                    parsed.problems.extend(problems.iter().cloned());
                    parsed.declared.push((document.line, name, Err(problems)));
                }
                Judged::Nameless(findings) => {
                    parsed.problems.extend(findings.into_iter().map(problem));
                    parsed.hidden = Some(format!("{} has a document whose VM cannot be told", path.display()));
                }
            },
        }
    }
    parsed
}

/// Reads a text as a file of this name would be: for `stead validate -` and for tests.
pub fn load_text(source: SourceName, path: &Path, text: &str) -> Desired {
    let mut loader = Loader::new(source, PathBuf::new());
    loader.files.insert(path.to_owned(), Cached { stamp: None, parsed: parse(path, text) });
    loader.collect(None, Vec::new(), Vec::new())
}

/// Reads files and folders that a user names, as `stead validate` does. Problems carry the paths as they were named.
pub fn validate_paths(paths: &[PathBuf]) -> Desired {
    let mut all = Desired::default();
    for path in paths {
        let source = SourceName(path.display().to_string());
        let mut desired = if path.is_dir() {
            Loader::new(source, path.clone()).load(&BTreeSet::new())
        } else {
            let cached = read_if_new(path, Found::Content(path.clone()), None);
            let mut loader = Loader::new(source, PathBuf::new());
            loader.files.insert(path.clone(), cached);
            loader.collect(None, Vec::new(), Vec::new())
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

fn problem_at(path: &Path, lines: &[&str], finding: Finding) -> Problem {
    let row = usize::try_from(finding.place.0).unwrap_or(0);
    // The start of the line is enough to find it; a hostile one may be a megabyte long.
    let snippet = row.checked_sub(1).and_then(|index| lines.get(index)).map(|line| line.chars().take(160).collect());
    Problem { path: path.to_owned(), place: Some(finding.place), message: finding.message, hint: finding.hint, snippet }
}

fn tab_hint(lines: &[&str], place: Option<(u64, u64)>) -> Option<String> {
    let row = usize::try_from(place?.0).ok()?.checked_sub(1)?;
    let has_tab = |line: &&str| line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
    // A parser may notice it one line late.
    let near = [Some(row), row.checked_sub(1)].into_iter().flatten().filter_map(|row| lines.get(row));
    let found = near.into_iter().any(has_tab);
    found.then(|| "YAML is indented with spaces; there is a tab".to_owned())
}

fn whole_file(path: &Path, message: &str, hint: Option<&str>) -> Problem {
    let hint = hint.map(str::to_owned);
    Problem { path: path.to_owned(), place: None, message: message.to_owned(), hint, snippet: None }
}

fn root_of(root: &Path) -> Result<(PathBuf, FileId), String> {
    let look = || {
        let canonical = root.canonicalize()?;
        Ok((canonical.clone(), canonical.metadata()?))
    };
    match look() {
        Ok((canonical, meta)) if meta.is_dir() => Ok((canonical, FileId { device: meta.dev(), inode: meta.ino() })),
        Ok(_) => Err(format!("{} is no folder", root.display())),
        Err(error @ io::Error { .. }) => Err(format!("the folder {} cannot be read: {error}", root.display())),
    }
}

fn file_id(path: &Path) -> Option<FileId> {
    let meta = path.metadata().ok()?;
    Some(FileId { device: meta.dev(), inode: meta.ino() })
}

/// The clock that files are stamped by, to tell how long ago one was written.
#[expect(
    clippy::disallowed_methods,
    reason = "file times are of the wall clock, and nothing but waiting depends on it"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
