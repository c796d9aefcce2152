//! Control groups, version 2 (`Documentation/admin-guide/cgroup-v2.rst`).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::libc;

use super::kernel_files;
use super::scope::{HOLDER, Scopes, scope_of};
use crate::host::devices::{Cgroup, CgroupFacts, CgroupLimits};

/// The controllers that limit a VM.
const CONTROLLERS: [&str; 2] = ["cpu", "memory"];

/// The host's cgroup v2 hierarchy.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    root: OnceLock<Result<PathBuf, String>>,
    scopes: Scopes,
}

impl Cgroups {
    /// What the host's cgroups can do.
    pub(super) fn facts(&self) -> Result<CgroupFacts, String> {
        let root = self.root()?;
        let known = kernel_files::read_text(root.join("cgroup.controllers")).unwrap_or_default();
        let has = |name: &&&str| known.split_ascii_whitespace().any(|known| known == **name);
        let missing: Vec<&str> = CONTROLLERS.iter().filter(|name| !has(name)).copied().collect();
        let no_limits = (!missing.is_empty()).then(|| {
            let names = missing.join(" and ");
            format!("the cgroup v2 hierarchy at {} has no {names} controller; version 1 may have it", root.display())
        });
        Ok(CgroupFacts { no_limits })
    }

    /// Where cgroup2 is mounted as a whole and may be written to.
    fn root(&self) -> Result<&Path, String> {
        let root = self.root.get_or_init(|| {
            let mounts =
                kernel_files::read("/proc/self/mountinfo").map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
            let root = super::proc::cgroup2_mount(&mounts).ok_or("no cgroup v2 hierarchy is mounted here")?;
            match rustix::fs::access(&root, rustix::fs::Access::WRITE_OK) {
                Ok(()) => Ok(root),
                Err(errno) => Err(format!("{} cannot be written to: {}", root.display(), io::Error::from(errno))),
            }
        });
        root.as_deref().map_err(Clone::clone)
    }

    /// The folder of a cgroup.
    fn folder(&self, path: &str) -> io::Result<PathBuf> {
        let is_bad = |part: &str| part.is_empty() || part == "." || part == "..";
        if path.split('/').any(is_bad) {
            return Err(super::error(io::ErrorKind::InvalidInput, format!("{path:?} is no cgroup of ours")));
        }
        let root = self.root().map_err(|why| super::error(io::ErrorKind::Unsupported, why))?;
        Ok(root.join(path))
    }

    /// A cgroup as it is; none where there are no cgroups.
    pub(super) fn one(&self, path: &str) -> io::Result<Option<Cgroup>> {
        if self.root().is_err() {
            return Ok(None);
        }
        let folder = self.folder(path)?;
        let read = |file: &str| match kernel_files::read_text(folder.join(file)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        };
        let Some(processes) = read("cgroup.procs")? else { return Ok(None) };
        let processes: Vec<i32> = processes.lines().filter_map(|pid| pid.parse().ok()).collect();
        // One with nobody in it may have somebody below it.
        let populated = !processes.is_empty() || {
            let Some(events) = read("cgroup.events")? else { return Ok(None) };
            events.lines().any(|line| line == "populated 1")
        };
        let limit = |file: &str| Ok::<_, io::Error>(read(file)?.map(|text| text.trim().to_owned()));
        Ok(Some(Cgroup { processes, populated, cpu_max: limit("cpu.max")?, memory_max: limit("memory.max")? }))
    }

    /// The names of the cgroups right below one.
    pub(super) fn children(&self, path: &str) -> io::Result<Vec<String>> {
        if self.root().is_err() {
            return Ok(Vec::new());
        }
        let folder = self.folder(path)?;
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_name() != HOLDER && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes a cgroup with its parents, and sets its limits as far as the host has them.
    pub(super) fn make(&self, path: &str, limits: &CgroupLimits) -> io::Result<bool> {
        let folder = self.folder(path)?;
        let is_new = self.make_folders(path)?;
        let write = |file: &str, value: String| match tell(&folder.join(file), &value) {
            // Without the controller there is no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::EACCES) => {
                Ok(())
            }
            result => result,
        };
        write("cpu.max", format!("{} {}", limits.cpu_quota_us, CgroupLimits::CPU_PERIOD_US))?;
        write("memory.max", limits.memory_bytes.to_string())?;
        // What is left of a VMM of which one process was killed for want of memory is of no use.
        write("memory.oom.group", "1".to_owned())?;
        Ok(is_new)
    }

    /// Makes each level, and has it hand the controllers down before the next is made. Whoever removes an empty parent at the
    /// same time may win, a few times at most.
    fn make_folders(&self, path: &str) -> io::Result<bool> {
        let mut tries = 0;
        loop {
            match self.try_make_folders(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 10 => tries += 1,
                result => return result,
            }
        }
    }

    fn try_make_folders(&self, path: &str) -> io::Result<bool> {
        let root = self.root().map_err(|why| super::error(io::ErrorKind::Unsupported, why))?;
        let (mut folder, mut path) = (root.to_owned(), path);
        if let Some((scope, below)) = scope_of(path) {
            // The levels above are systemd's, controllers included.
            self.scopes.keep(root, scope)?;
            folder.push(scope);
            path = below;
        }
        let mut is_new = false;
        for part in path.split('/') {
            hand_down(&folder);
            folder.push(part);
            is_new = match fs::create_dir(&folder) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(error),
            };
        }
        Ok(is_new)
    }

    /// A cgroup, for a child to be born in.
    pub(super) fn open(&self, path: &str) -> io::Result<fs::File> {
        fs::File::open(self.folder(path)?)
    }

    /// Kills every process in a cgroup and below it.
    pub(super) fn kill(&self, path: &str) -> io::Result<bool> {
        let folder = self.folder(path)?;
        match self.one(path)? {
            Some(found) if found.populated => {}
            _ => return Ok(false),
        }
        match tell(&folder.join("cgroup.kill"), "1") {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => {
                Err(super::error(io::ErrorKind::Unsupported, "this kernel has no cgroup.kill (Linux 5.14)"))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a cgroup, and those of its parents that are empty then, up to the one that all of stead's are in.
    pub(super) fn remove(&self, path: &str) -> io::Result<bool> {
        let folder = self.folder(path)?;
        match fs::remove_dir(&folder) {
            Ok(()) => {}
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let found = self.one(path)?;
                let pids: Vec<String> = found.iter().flat_map(|found| &found.processes).map(i32::to_string).collect();
                let who = if pids.is_empty() {
                    "something below it lives".to_owned()
                } else {
                    format!("pid {}", pids.join(", "))
                };
                return Err(super::error(io::ErrorKind::ResourceBusy, format!("{who} is in it")));
            }
            Err(error) => return Err(error),
        }
        let parents = Path::new(path).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
        for parent in parents {
            // systemd's own, and the slice that it is in, go when nobody is in them any more.
            if scope_of(&format!("{}/", parent.display())).is_some() {
                break;
            }
            // Others' VMs are in it.
            if fs::remove_dir(self.folder(&parent.to_string_lossy())?).is_err() {
                break;
            }
        }
        Ok(true)
    }
}

/// Lets the cgroups below a folder have the controllers, as far as it has them itself. Where it may not, there are no limits.
fn hand_down(folder: &Path) {
    let file = folder.join("cgroup.subtree_control");
    let words = |file: &Path| kernel_files::read_text(file).unwrap_or_default();
    let (known, enabled) = (words(&folder.join("cgroup.controllers")), words(&file));
    let has = |words: &str, name: &str| words.split_ascii_whitespace().any(|word| word == name);
    for name in CONTROLLERS {
        // To ask for one that is not there takes the kernel five milliseconds to refuse.
        if has(&known, name) && !has(&enabled, name) {
            // One at a time: one that cannot be had would keep the other out.
            let _ = tell(&file, &format!("+{name}"));
        }
    }
}

/// Writes to a file of the kernel's, which takes each write as one word.
pub(super) fn tell(file: &Path, word: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(word.as_bytes())
}

/// Whether the cgroup is not there, or vanished under an open file.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_hierarchy() {
        let cgroups = Cgroups { root: OnceLock::from(Ok("/sys/fs/cgroup".into())), ..Cgroups::default() };
        for bad in ["", "/", "..", "stead/../..", "stead//x", "/stead", "./x"] {
            assert_eq!(cgroups.folder(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
        assert!(cgroups.folder("stead/id/web").is_ok());
    }
}
