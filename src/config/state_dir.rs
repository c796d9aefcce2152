//! Opening STATE: whose it is, which id it has, and where its sockets lie.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{MACHINE_ID, Settings};
use crate::names::{Layout, RunDirTooLong, StateId};
use crate::state::FORMAT_VERSION;

/// The most that STATE/id may have: far more than stead writes.
const ID_FILE_MAX: u64 = 64 << 10;

/// What the opener is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It only looks: nothing is made, and a STATE that is not there is an empty one.
    Reader,
    /// It may act: STATE, its id and its run folder are made where they are missing.
    Actor,
}

/// STATE/id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StateRecord {
    version: u32,
    id: StateId,
    run_dir: PathBuf,
}

/// Why a STATE cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A folder of stead's own belongs to somebody else.
    #[error("{} belongs to user {owner}, and stead runs as user {me}", path.display())]
    WrongOwner {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who asks.
        me: u32,
    },
    /// Others may write to a folder of stead's own, and so decide what stead kills.
    #[error("{} can be written by others (mode {mode:04o})", path.display())]
    WritableByOthers {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A folder of stead's own is something else.
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// STATE was used with another RUN, where its VMs' sockets lie.
    #[error("{} keeps its sockets in {}, not in {}", state_dir.display(), remembered.display(), given.display())]
    OtherRunDir {
        /// STATE.
        state_dir: PathBuf,
        /// RUN as it was.
        remembered: PathBuf,
        /// RUN as it was now asked for.
        given: PathBuf,
    },
    /// A newer stead wrote STATE/id.
    #[error("{} has format {found}; this stead knows up to {FORMAT_VERSION}", path.display())]
    Newer {
        /// STATE/id.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// STATE/id is not what stead wrote.
    #[error("{} cannot be read as this state's id", path.display())]
    Corrupt {
        /// STATE/id.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// RUN leaves no room for socket names.
    #[error(transparent)]
    RunDirTooLong(#[from] RunDirTooLong),
    /// The kernel refused.
    #[error("could not {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl StateError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::WrongOwner { owner, .. } => {
                Some(format!("run stead as user {owner}, or choose another folder with --state-dir and --run-dir"))
            }
            Self::WritableByOthers { path, .. } => Some(format!(
                "whoever can write there decides what stead does; if you trust what is in it: chmod go-w {}",
                path.display()
            )),
            Self::OtherRunDir { remembered, .. } => Some(format!(
                "set STEAD_RUN_DIR={} (or --run-dir); VMs are found by their sockets, so RUN stays where it was. Under \
                 cron the default can differ from that of your session",
                remembered.display()
            )),
            Self::Newer { .. } => Some("use the newer stead, or another --state-dir".to_owned()),
            Self::Corrupt { path, .. } => Some(format!(
                "move {} away: stead then derives the id anew, which is the same unless the folder was moved or copied",
                path.display()
            )),
            Self::Io { path, source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Some(format!(
                "stead has no access to {}: run it as root, or choose folders of your own with --state-dir and --run-dir",
                path.display()
            )),
            Self::NotAFolder(_) | Self::RunDirTooLong(_) | Self::Io { .. } => None,
        }
    }
}

/// Finds out which state `settings` mean, and proves that nobody but this user decides what is in it.
///
/// # Guarantees
/// A [`Access::Reader`] makes nothing. For an [`Access::Actor`], STATE, its durable id and RUN/ID exist afterwards, with
/// mode 0700 where they were made.
pub fn open_state(settings: &Settings, access: Access) -> Result<Layout, StateError> {
    let given = absolute(&settings.state_dir)?;
    if access == Access::Actor {
        make_private_folder(&given)?;
    }
    let state_dir = canonical(&given)?;
    let exists = check_private(&state_dir)?;
    let record = if exists { read_record(&state_dir)? } else { None };
    let run_dir = absolute(&settings.run_dir)?;
    let record = match record {
        Some(record) => record,
        None if access == Access::Actor => create_record(&state_dir, run_dir.clone())?,
        None => new_record(&state_dir, run_dir.clone())?,
    };
    if record.run_dir != run_dir {
        return Err(StateError::OtherRunDir { state_dir, remembered: record.run_dir, given: run_dir });
    }
    let layout = Layout::new(record.id, state_dir, &run_dir)?.under_systemd(is_under_systemd());
    if access == Access::Actor {
        make_private_folder(&layout.run_dir)?;
    }
    check_private(&layout.run_dir)?;
    Ok(layout)
}

/// Whether systemd is this host's PID 1: sd_booted(3).
fn is_under_systemd() -> bool {
    fs::symlink_metadata("/run/systemd/system").is_ok_and(|metadata| metadata.is_dir())
}

fn absolute(path: &Path) -> Result<PathBuf, StateError> {
    std::path::absolute(path).map_err(|source| io_error("find", path, source))
}

/// The path with its links resolved, as far as it exists: the id of a STATE that is not made yet is already known.
fn canonical(path: &Path) -> Result<PathBuf, StateError> {
    match path.canonicalize() {
        Ok(canonical) => Ok(canonical),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(canonical(parent)?.join(name)),
            _ => Ok(path.to_owned()),
        },
        Err(source) => Err(io_error("find", path, source)),
    }
}

/// Makes a folder with mode 0700. Missing parents get the usual mode: they are not stead's own.
fn make_private_folder(path: &Path) -> Result<(), StateError> {
    let failed = |source| io_error("make", path, source);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_parent(path).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(failed(source)),
    }
}

/// Whether a folder of stead's own is there; an error if it is not one that only this user can write.
fn check_private(path: &Path) -> Result<bool, StateError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(io_error("look at", path, source)),
    };
    if !metadata.is_dir() {
        return Err(StateError::NotAFolder(path.to_owned()));
    }
    let me = nix::unistd::geteuid().as_raw();
    if metadata.uid() != me {
        return Err(StateError::WrongOwner { path: path.to_owned(), owner: metadata.uid(), me });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(StateError::WritableByOthers { path: path.to_owned(), mode });
    }
    Ok(true)
}

fn id_file(state_dir: &Path) -> PathBuf {
    state_dir.join("id")
}

fn read_record(state_dir: &Path) -> Result<Option<StateRecord>, StateError> {
    let path = id_file(state_dir);
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("read", &path, source)),
    };
    let mut bytes = Vec::new();
    file.take(ID_FILE_MAX).read_to_end(&mut bytes).map_err(|source| io_error("read", &path, source))?;
    // The version first: a newer format may have other fields.
    let corrupt = |source| StateError::Corrupt { path: path.clone(), source };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(corrupt)?;
    let found = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if found > u64::from(FORMAT_VERSION) {
        return Err(StateError::Newer { path, found: u32::try_from(found).unwrap_or(u32::MAX) });
    }
    serde_json::from_value(value).map(Some).map_err(corrupt)
}

fn new_record(state_dir: &Path, run_dir: PathBuf) -> Result<StateRecord, StateError> {
    // A host without one (a container, a chroot) still gets an id that is stable for this path.
    let machine_id = match fs::read_to_string(MACHINE_ID) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(io_error("read", Path::new(MACHINE_ID), source)),
    };
    Ok(StateRecord { version: FORMAT_VERSION, id: StateId::derive(&machine_id, state_dir), run_dir })
}

/// Writes STATE/id, durable and whole, unless another stead was faster: then that one's holds.
fn create_record(state_dir: &Path, run_dir: PathBuf) -> Result<StateRecord, StateError> {
    let record = new_record(state_dir, run_dir)?;
    // A RUN that leaves no room for sockets must not be remembered: it could not be taken back.
    Layout::new(record.id, state_dir.to_owned(), &record.run_dir)?;
    let path = id_file(state_dir);
    let temporary = state_dir.join(format!(".id.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut bytes = serde_json::to_vec_pretty(&record)?;
        bytes.push(b'\n');
        file.write_all(&bytes)?;
        file.sync_all()?;
        // A link instead of a rename: it fails where the name is taken, so that two first starts agree on one record.
        match fs::hard_link(&temporary, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        sync_parent(&path)
    })();
    let removed = fs::remove_file(&temporary);
    written.map_err(|source| io_error("write", &path, source))?;
    removed.map_err(|source| io_error("remove", &temporary, source))?;
    read_record(state_dir)?.ok_or_else(|| io_error("read", &path, io::ErrorKind::NotFound.into()))
}

/// Makes a new name durable: fsync of the folder that holds it (fsync(2)).
fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::Io { what, path: path.to_owned(), source }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]
mod tests {
    use super::*;
    use crate::cli::test_settings;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_reader_of_a_state_that_is_not_there_makes_nothing_and_knows_its_id() {
        let home = tempfile::tempdir().unwrap();
        let settings = test_settings(home.path());
        let seen = open_state(&settings, Access::Reader).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
        let made = open_state(&settings, Access::Actor).unwrap();
        assert_eq!(seen, made);
        assert_eq!(open_state(&settings, Access::Reader).unwrap(), made);
    }

    #[test]
    fn folders_that_an_actor_makes_are_its_own() {
        let home = tempfile::tempdir().unwrap();
        let layout = open_state(&test_settings(home.path()), Access::Actor).unwrap();
        for folder in [&layout.state_dir, &layout.run_dir] {
            assert_eq!(fs::metadata(folder).unwrap().mode() & 0o7777, 0o700, "{}", folder.display());
        }
        assert_eq!(fs::metadata(layout.state_dir.join("id")).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&layout.state_dir).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn an_id_stays_when_the_state_moves() {
        let home = tempfile::tempdir().unwrap();
        let mut settings = test_settings(home.path());
        let before = open_state(&settings, Access::Actor).unwrap();
        let moved = home.path().join("moved");
        fs::rename(&settings.state_dir, &moved).unwrap();
        settings.state_dir = moved;
        assert_eq!(open_state(&settings, Access::Actor).unwrap().state_id, before.state_id);
    }

    #[test]
    fn a_state_that_others_can_write_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let settings = test_settings(home.path());
        open_state(&settings, Access::Actor).unwrap();
        fs::set_permissions(&settings.state_dir, fs::Permissions::from_mode(0o770)).unwrap();
        for access in [Access::Reader, Access::Actor] {
            let error = open_state(&settings, access).unwrap_err();
            assert!(matches!(error, StateError::WritableByOthers { mode: 0o770, .. }), "{error}");
        }
    }

    #[test]
    fn another_run_folder_is_refused_with_the_one_that_was() {
        let home = tempfile::tempdir().unwrap();
        let mut settings = test_settings(home.path());
        open_state(&settings, Access::Actor).unwrap();
        let was = std::mem::replace(&mut settings.run_dir, home.path().join("other"));
        let error = open_state(&settings, Access::Actor).unwrap_err();
        assert!(error.hint().unwrap().contains(&was.display().to_string()));
        assert!(!settings.run_dir.exists());
    }

    #[test]
    fn a_broken_or_newer_id_is_never_guessed_at() {
        let home = tempfile::tempdir().unwrap();
        let settings = test_settings(home.path());
        let layout = open_state(&settings, Access::Actor).unwrap();
        let id = layout.state_dir.join("id");
        for (content, newer) in [("", false), ("{\"version\":1", false), ("{\"version\": 99}", true)] {
            fs::write(&id, content).unwrap();
            let error = open_state(&settings, Access::Actor).unwrap_err();
            assert_eq!(matches!(error, StateError::Newer { found: 99, .. }), newer, "{error}");
            assert_eq!(fs::read_to_string(&id).unwrap(), content, "left as it was");
        }
    }

    #[test]
    fn a_run_folder_too_long_for_sockets_is_not_remembered() {
        let home = tempfile::tempdir().unwrap();
        let mut settings = test_settings(home.path());
        let short = std::mem::replace(&mut settings.run_dir, home.path().join("r".repeat(100)));
        assert!(matches!(open_state(&settings, Access::Actor), Err(StateError::RunDirTooLong(_))));
        settings.run_dir = short;
        open_state(&settings, Access::Actor).unwrap();
    }
}
