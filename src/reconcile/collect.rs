//! The collector: a survey of the host, a judgement of what nothing accounts for, and the freeing of what is old enough.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::worker::lock;
use super::{Memory, Stead};
use crate::audit::{Entry, Outcome};
use crate::control::Reply;
use crate::names::{Owner, ShortUid};
use crate::observed::orphans::TaggedObject;
use crate::observed::process::ProcessScan;
use crate::plan::orphans::{Orphan, OrphanVerdict, first_seen, judge};
use crate::reasons::Reason;
use crate::state::{FORMAT_VERSION, OrphanState, encode, parse_orphans};
use crate::status::EventType;
use crate::time::Now;

/// Freeing a device lets go of what is under it: a loop under a snapshot, and its base.
const MOST_ROUNDS: usize = 4;

/// Lines that fit in one reply.
const MOST_LINES: usize = 200;
/// What the name of an entry of the trash ends with while it is removed.
const CLAIMED: &str = ".expired";
/// How long the disks of a deleted VM are kept.
const TRASH_SECONDS: u64 = 7 * 24 * 60 * 60;
/// After so long what is left of the trash waits for the next survey: one that takes longer counts as hung.
const TRASH_BOUND: Duration = Duration::from_secs(20);

/// What is being freed right now, for when that takes so long that others cannot wait for it.
#[derive(Debug, Default)]
pub(super) struct Freeing {
    owners: Mutex<BTreeSet<ShortUid>>,
    is_abandoned: AtomicBool,
}

impl Freeing {
    /// Whether something that carries this VM's tag is being freed.
    pub(super) fn concerns(&self, uid: &ShortUid) -> bool {
        lock(&self.owners).contains(uid)
    }

    /// Nobody waits any more: what is being freed in this moment is the last.
    pub(super) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::SeqCst);
    }

    fn begin(&self, objects: &[TaggedObject]) {
        let owner = |object: &TaggedObject| match &object.owner {
            Some(Owner::Vm(uid)) => Some(uid.clone()),
            Some(Owner::Shared) | None => None,
        };
        *lock(&self.owners) = objects.iter().filter_map(owner).collect();
    }

    fn end(&self) {
        lock(&self.owners).clear();
    }

    fn goes_on(&self) -> bool {
        !self.is_abandoned.load(Ordering::SeqCst)
    }
}

/// What became of an orphan.
#[derive(Debug, Clone, PartialEq)]
pub struct Collected {
    /// The orphan.
    pub orphan: Orphan,
    /// Whether it was freed, or why not; `None` when it was not tried.
    pub freed: Option<Result<(), String>>,
}

/// Looks for orphans, and notes since when they are known; frees nothing.
///
/// # Errors
/// When some kind of object cannot be listed, or the note cannot be written: then nothing grows old.
pub(super) fn survey(stead: &Stead, memory: &Memory) -> io::Result<Vec<Orphan>> {
    let orphans = preview(stead, memory)?;
    remember(stead, &orphans)?;
    Ok(orphans)
}

/// The orphans as they are, without noting anything.
pub(super) fn preview(stead: &Stead, memory: &Memory) -> io::Result<Vec<Orphan>> {
    // One scan of its own: the one that all VMs share is of this process's beginning.
    let scan = ProcessScan::default();
    let survey = stead.looker(&memory.cache, &scan).survey()?;
    let before = known(stead);
    Ok(judge(&survey, &before.seen, stead.settings.policy.orphan_min_age, &stead.host.now()))
}

/// Frees every orphan that is old enough and that nothing uses. Nobody else may work on a VM meanwhile.
pub(super) fn collect(stead: &Stead, memory: &Memory) -> io::Result<Vec<Collected>> {
    let facts = LazyCell::new(|| stead.host.host_facts());
    let actor = stead.actor(memory, &facts);
    let mut collected: Vec<Collected> = Vec::new();
    let mut tried: BTreeSet<String> = BTreeSet::new();
    let freeing = &memory.freeing;
    freeing.is_abandoned.store(false, Ordering::SeqCst);
    for _ in 0..MOST_ROUNDS {
        // Judged anew each time, and right before it is freed.
        let orphans = survey(stead, memory)?;
        let is_due = |orphan: &&Orphan| orphan.verdict == OrphanVerdict::Free && !tried.contains(&orphan.object.key());
        let due: Vec<Orphan> = orphans.iter().filter(is_due).cloned().collect();
        if due.is_empty() || !freeing.goes_on() {
            let left = orphans.into_iter().filter(|orphan| !tried.contains(&orphan.object.key()));
            collected.extend(left.map(|orphan| Collected { orphan, freed: None }));
            break;
        }
        tried.extend(due.iter().map(|orphan| orphan.object.key()));
        let objects: Vec<TaggedObject> = due.iter().map(|orphan| orphan.object.clone()).collect();
        freeing.begin(&objects);
        let results = actor.collect(&objects, &|| freeing.goes_on());
        freeing.end();
        let freed = due.into_iter().zip(results).map(|(orphan, result)| {
            let freed = Some(result.map_err(|error| error.to_string()));
            Collected { orphan, freed }
        });
        let before = collected.len();
        collected.extend(freed);
        collected[before..].iter().for_each(|collected| record(stead, memory, collected));
    }
    Ok(collected)
}

/// Writes down what was freed, or could not be.
fn record(stead: &Stead, memory: &Memory, Collected { orphan, freed }: &Collected) {
    let (kind, name) = (orphan.object.kind.word(), &orphan.object.name);
    let (event, reason, message) = match freed {
        Some(Ok(())) => {
            (EventType::Normal, Reason::Collected, format!("freed {kind} {name}: nothing accounted for it"))
        }
        Some(Err(why)) => (EventType::Warning, Reason::CollectFailed, format!("could not free {kind} {name}: {why}")),
        None => return,
    };
    let outcome = if event == EventType::Normal { Outcome::Done } else { Outcome::Failed };
    let entry = Entry::new(stead.host.now().wall, event, reason, &message);
    let vm = orphan.vm.as_ref().and_then(|name| name.parse().ok());
    memory.record(stead, &Entry { vm, action: Some("collect".to_owned()), outcome: Some(outcome), ..entry });
}

/// Removes from the trash what has been there long enough, one folder of disks at least.
pub(super) fn empty_trash(stead: &Stead, memory: &Memory) {
    let trash = stead.layout.trash();
    let entries = match stead.host.list_folder(&trash) {
        Ok(entries) => entries,
        Err(error) => return tracing::warn!("listing {}: {error}", trash.display()),
    };
    let (began, now) = (Instant::now(), u64::try_from(stead.host.now().wall.as_second()).unwrap_or_default());
    for entry_name in entries.iter().filter(|entry| is_past(entry, now) || is_claimed(entry)) {
        let folder = trash.join(entry_name);
        let removed =
            if is_claimed(entry_name) { remove_unused(stead, &folder) } else { claim_and_remove(stead, &folder) };
        match removed {
            Ok(()) => {
                let message = format!("removed {}: it was in the trash for seven days", folder.display());
                tracing::info!("{message}");
                let entry = Entry::new(stead.host.now().wall, EventType::Normal, Reason::TrashEmptied, &message);
                let vm = crate::names::Layout::read_trash_entry(unclaimed(entry_name)).map(|(name, _)| name);
                let (action, outcome) = (Some("empty-trash".to_owned()), Some(Outcome::Done));
                memory.record(stead, &Entry { vm, action, outcome, ..entry });
                if began.elapsed() > TRASH_BOUND {
                    return;
                }
            }
            // The others have their turn: it may fail each time.
            Err(error) => tracing::warn!("removing {}: {error}", folder.display()),
        }
    }
}

/// Whether an entry of the trash has been there long enough; what stead did not put there stays.
fn is_past(entry: &str, now: u64) -> bool {
    crate::names::Layout::read_trash_entry(entry).is_some_and(|(_, at)| now.saturating_sub(at) >= TRASH_SECONDS)
}

/// Whether an entry was about to be removed when stead ended.
fn is_claimed(entry: &str) -> bool {
    unclaimed(entry) != entry
}

/// An entry's name before it was about to be removed.
fn unclaimed(entry: &str) -> &str {
    entry.strip_prefix('.').and_then(|entry| entry.strip_suffix(CLAIMED)).unwrap_or(entry)
}

/// Removes a folder of disks under a name from which no VM takes its disks back: one that is just about to would find them
/// removed under its hands.
fn claim_and_remove(stead: &Stead, folder: &Path) -> io::Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let claimed = folder.with_file_name(format!(".{name}{CLAIMED}"));
    if !stead.host.rename_durable(folder, &claimed)? {
        return Ok(());
    }
    remove_unused(stead, &claimed).or_else(|error| {
        stead.host.rename_durable(&claimed, folder)?;
        Err(error)
    })
}

/// Removes a folder of disks, unless one of them is still under a loop: its file is found by inode, whatever it is called.
fn remove_unused(stead: &Stead, folder: &Path) -> io::Result<()> {
    let bound: Vec<_> = stead.host.loop_devices()?;
    for file in stead.host.list_folder(folder)? {
        let id = stead.host.file_id(&folder.join(&file))?;
        if let Some(device) = bound.iter().find(|device| Some(device.backing) == id) {
            let text = format!("{file} is in use by {}", device.device);
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
    }
    stead.host.remove_folder(folder).map(drop)
}

fn known(stead: &Stead) -> OrphanState {
    let path = stead.layout.orphans();
    match stead.host.read_state_file(&path) {
        Ok(None) => OrphanState::default(),
        // What is forgotten is seen anew, and waits its time again.
        Ok(Some(bytes)) => parse_orphans(&bytes).unwrap_or_else(|flaw| {
            tracing::warn!("{}: {flaw}; every orphan counts as seen now", path.display());
            OrphanState::default()
        }),
        Err(error) => {
            tracing::warn!("{error}");
            OrphanState::default()
        }
    }
}

/// Notes since when orphans are known; what is not among them any more is forgotten.
pub(super) fn remember(stead: &Stead, orphans: &[Orphan]) -> io::Result<()> {
    let seen = first_seen(orphans);
    if seen == known(stead).seen {
        return Ok(());
    }
    stead.host.write_durable(&stead.layout.orphans(), &encode(&OrphanState { version: FORMAT_VERSION, seen }))
}

/// What is told to whoever asked.
pub(super) fn reply(collected: &[Collected], now: &Now) -> Reply {
    let unfreed = collected.iter().filter(|collected| matches!(collected.freed, Some(Err(_)))).count();
    let mut lines: Vec<String> = collected.iter().map(|collected| line(collected, now)).collect();
    if lines.len() > MOST_LINES {
        let more = lines.len() - MOST_LINES;
        lines.truncate(MOST_LINES);
        lines.push(format!("and {more} more"));
    }
    Reply::Collected { lines, unfreed }
}

/// Says what was freed and what could not be.
pub(super) fn log(collected: &[Collected]) {
    for Collected { orphan, freed } in collected {
        let (kind, name) = (orphan.object.kind.word(), &orphan.object.name);
        match freed {
            Some(Ok(())) => tracing::info!(action = "collect", "freed {kind} {name}: nothing accounted for it"),
            Some(Err(why)) => tracing::warn!(action = "collect", "could not free {kind} {name}: {why}"),
            None => {}
        }
    }
}

fn line(collected: &Collected, now: &Now) -> String {
    let orphan = &collected.orphan;
    match &collected.freed {
        Some(Ok(())) => format!("{}: freed", orphan.described(now)),
        Some(Err(why)) => format!("{}: could not be freed: {why}", orphan.described(now)),
        None => orphan.line(now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stead_put_into_the_trash_leaves_it_and_only_after_seven_days() {
        let day = 24 * 60 * 60;
        assert!(is_past("web.1000", 1000 + 7 * day));
        assert!(!is_past("web.1000", 999 + 7 * day));
        // The clock was set back.
        assert!(!is_past("web.1000", 10));
        assert!(!is_past("holiday-photos", 1000 + 7 * day));
        assert!(!is_past("web.tar", 1000 + 7 * day));
        // Nor does a VM take back what is about to go.
        assert!(!is_past(".web.1000.expired", 1000 + 7 * day));
        assert!(is_claimed(".web.1000.expired") && !is_claimed("web.1000"));
        assert_eq!(crate::names::Layout::read_trash_entry(".web.1000.expired"), None);
    }
}
