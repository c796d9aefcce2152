//! One manifest file: what it declares, and whether it has to be read again.

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::hosts::{Host, HostSelector};
use super::super::structure::Finding;
use super::super::validate::{self, Judged};
use super::super::{FileId, Problem, yaml};
use super::{FILE_MAX, QUIET};
use crate::names::VmName;
use crate::spec::Vm;

/// A second write within one tick of the file system's clock leaves no trace in the times.
const TICK: Duration = Duration::from_millis(50);

/// What a file said when it was read last. Stale when its stamp differs.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) stamp: Option<Stamp>,
    /// Whether the stamp tells its content from any later one: not if it was read within a tick of the last write.
    is_sure: bool,
    /// Whether its content may change by another name than its own: it is a link, or has hard links.
    pub(super) is_alias: bool,
    pub(super) parsed: Parsed,
}

/// What changes when a file does (stat(2)). The change time cannot be set by anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) id: FileId,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            id: FileId::of(meta),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// How long ago the file was written; zero when its times lie ahead.
    pub(super) fn age(&self, now: SystemTime) -> Duration {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = self.changed.max(self.modified);
        let written = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        since_epoch.saturating_sub(written)
    }
}

/// A VM that one document declares.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Declared {
    /// The line where the document starts.
    pub(super) line: u64,
    pub(super) name: VmName,
    /// The VM, or what is wrong with it.
    pub(super) vm: Result<Arc<Vm>, Vec<Problem>>,
    /// Which hosts it is for. Not known of one that something is wrong with, which therefore counts on each.
    pub(super) selector: Option<Arc<HostSelector>>,
}

/// What one file declares.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Parsed {
    pub(super) declared: Vec<Declared>,
    /// The hosts that it lists.
    pub(super) hosts: Vec<Host>,
    /// What is wrong with a document that lists one, if anything.
    pub(super) broken_host: Option<String>,
    pub(super) problems: Vec<Problem>,
    /// Why it may declare more than can be seen.
    pub(super) hidden: Option<String>,
}

impl Parsed {
    /// Whether it says which hosts there are.
    pub(super) fn lists_hosts(&self) -> bool {
        !self.hosts.is_empty() || self.broken_host.is_some()
    }

    /// Whether one of its VMs is not for every host.
    pub(super) fn has_selectors(&self) -> bool {
        self.declared.iter().any(|declared| declared.selector.is_some())
    }
}

/// A file on the way: where its content lies, or why it cannot be read.
pub(super) enum Found {
    /// In the file itself.
    Content(PathBuf),
    /// In the file that a link leads to.
    Linked(PathBuf),
    Unreadable(Problem),
}

/// Which files are left alone, since somebody is writing them, or may be: half a manifest may be a sound one.
pub(super) struct Unsettled<'a> {
    /// Those of which this is known, by their paths below the root.
    pub(super) files: &'a BTreeSet<PathBuf>,
    /// The same by what the kernel calls them: a link to one is left alone too.
    ids: BTreeSet<FileId>,
    /// Also all that were written within [`QUIET`], as long as nobody tells that they are whole.
    pub(super) young: bool,
}

impl<'a> Unsettled<'a> {
    pub(super) fn new(root: &Path, files: &'a BTreeSet<PathBuf>, young: bool) -> Self {
        // Of a link itself, not of what it leads to: that is written by its own name.
        let metas = files.iter().filter_map(|file| root.join(file).symlink_metadata().ok());
        let ids = metas.map(|meta| FileId::of(&meta)).collect();
        Self { files, ids, young }
    }
}

/// A file that was read, or need not be; or that is left alone, for it is young.
pub(super) enum Reading {
    Read(Cached),
    Young(Cached),
}

/// Reads a file, unless what is known of it still holds. One that cannot be read keeps declaring what it did, as invalid.
pub(super) fn read(below: &Path, found: Found, known: Option<Cached>, unsettled: &Unsettled<'_>) -> Reading {
    let (path, is_link) = match found {
        Found::Content(path) => (path, false),
        Found::Linked(path) => (path, true),
        Found::Unreadable(problem) => return Reading::Read(unreadable(problem, known, true)),
    };
    if unsettled.files.contains(below) {
        return Reading::Read(as_before(below, known, is_link));
    }
    // Most are as they were, and one need not be opened for that to be seen.
    if let Some(sure) = known.as_ref().filter(|known| known.is_sure)
        && let Ok(meta) = path.symlink_metadata()
        && sure.stamp == Some(Stamp::of(&meta))
    {
        return Reading::Read(as_before(below, known, is_link || meta.nlink() > 1));
    }
    let (file, meta) = match open(&path) {
        Ok(opened) => opened,
        Err(message) => return Reading::Read(unreadable(whole_file(below, &message, None), known, is_link)),
    };
    let (stamp, is_alias) = (Stamp::of(&meta), is_link || meta.nlink() > 1);
    if unsettled.ids.contains(&stamp.id) {
        return Reading::Read(as_before(below, known, is_alias));
    }
    let age = stamp.age(wall_clock());
    if unsettled.young && age < QUIET {
        return Reading::Young(as_before(below, known, is_alias));
    }
    Reading::Read(match read_text(file, &stamp) {
        Ok(text) => Cached { stamp: Some(stamp), is_sure: age >= TICK, is_alias, parsed: parse(below, &text) },
        Err((message, hint)) => {
            let cached = unreadable(whole_file(below, &message, hint), known, is_alias);
            Cached { stamp: Some(stamp), is_sure: age >= TICK, ..cached }
        }
    })
}

impl Cached {
    /// What a text says that is in no folder.
    pub(super) fn of_text(path: &Path, text: &str) -> Self {
        Self { stamp: None, is_sure: false, is_alias: false, parsed: parse(path, text) }
    }

    /// The same of bytes that should be a text.
    pub(super) fn of_bytes(path: &Path, bytes: Vec<u8>) -> Self {
        match text_of(bytes) {
            Ok(text) => Self::of_text(path, &text),
            Err((message, hint)) => unreadable(whole_file(path, &message, hint), None, false),
        }
    }
}

/// What a file said before stays in force; a new one may declare anything.
fn as_before(below: &Path, known: Option<Cached>, is_alias: bool) -> Cached {
    let hidden = || Some(format!("{} is being written", below.display()));
    let unknown =
        || Cached { stamp: None, is_sure: false, is_alias, parsed: Parsed { hidden: hidden(), ..Parsed::default() } };
    known.map_or_else(unknown, |known| Cached { is_alias, ..known })
}

fn unreadable(problem: Problem, known: Option<Cached>, is_alias: bool) -> Cached {
    let Parsed { declared, hosts, broken_host, .. } = known.map(|known| known.parsed).unwrap_or_default();
    let keep = |declared: Declared| Declared { vm: Err(vec![problem.clone()]), ..declared };
    let declared = declared.into_iter().map(keep).collect();
    let hidden = Some(format!("{} cannot be read", problem.path.display()));
    let parsed = Parsed { declared, hosts, broken_host, problems: vec![problem], hidden };
    Cached { stamp: None, is_sure: false, is_alias, parsed }
}

/// Opens without waiting for a writer (a FIFO), without following a link (it was resolved and may have been replaced since).
fn open(path: &Path) -> Result<(File, Metadata), String> {
    use nix::fcntl::OFlag;
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = file.map_err(|error| format!("it cannot be opened: {error}"))?;
    let meta = file.metadata().map_err(|error| format!("it cannot be looked at: {error}"))?;
    if !meta.is_file() {
        return Err("this is no regular file".to_owned());
    }
    Ok((file, meta))
}

/// Why something is no text, and what to do.
type NoText = (String, Option<&'static str>);

fn read_text(file: File, stamp: &Stamp) -> Result<String, NoText> {
    let too_large = || (format!("the file is larger than {FILE_MAX} bytes"), Some("split it; one file a VM is usual"));
    if stamp.size > FILE_MAX {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|error| (format!("reading it failed: {error}"), None))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(too_large());
    }
    text_of(bytes)
}

/// The text that a manifest's bytes are, or why they are none and what to do.
fn text_of(bytes: Vec<u8>) -> Result<String, NoText> {
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
                Judged::Vm(vm, selector) => parsed.declared.push(Declared {
                    line: document.line,
                    name: vm.name.clone(),
                    vm: Ok(Arc::from(vm)),
                    selector: selector.map(Arc::new),
                }),
                Judged::Host(host) => parsed.hosts.push(host),
                Judged::BrokenHost(findings) => {
                    let problems: Vec<Problem> = findings.into_iter().map(problem).collect();
                    parsed.broken_host = problems.first().map(Problem::one_line);
                    parsed.problems.extend(problems);
                }
                Judged::Broken(name, findings) => {
                    let problems: Vec<Problem> = findings.into_iter().map(problem).collect();
                    parsed.problems.extend(problems.iter().cloned());
                    parsed.declared.push(Declared { line: document.line, name, vm: Err(problems), selector: None });
                }
                Judged::Nameless(findings) => {
                    parsed.problems.extend(findings.into_iter().map(problem));
                    parsed.hidden = Some(format!("{} has a document whose VM cannot be told", path.display()));
                }
            },
        }
    }
    parsed.declared.shrink_to_fit();
    parsed
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

pub(super) fn whole_file(path: &Path, message: &str, hint: Option<&str>) -> Problem {
    let hint = hint.map(str::to_owned);
    Problem { path: path.to_owned(), place: None, message: message.to_owned(), hint, snippet: None }
}

/// The clock that files are stamped by, to tell how long ago one was written.
#[expect(
    clippy::disallowed_methods,
    reason = "file times are of the wall clock, and nothing but waiting depends on it"
)]
pub(super) fn wall_clock() -> SystemTime {
    SystemTime::now()
}
