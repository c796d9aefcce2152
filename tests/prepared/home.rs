//! A host of its own for the binary: a state, a run folder and a folder of manifests, and what is done with them by hand.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use stead::names::{Layout, StateId};
use stead::sync::{GitSource, GitUrl, Reference};

/// With nothing in it yet but a folder of manifests.
pub struct Home(pub tempfile::TempDir);

impl Home {
    pub fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::create_dir(home.path("manifests")).unwrap();
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    /// A file that only its owner may read, as stead's own are.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// A state as an earlier stead left it.
    pub fn layout(&self) -> Layout {
        let (state, run) = (self.path("state"), self.path("run"));
        let id = StateId::derive("machine", &state);
        let layout = Layout::new(id, state.clone(), &run).unwrap();
        for folder in [&state, &run, &layout.run_dir, &layout.vms()] {
            fs::create_dir(folder).unwrap();
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
        self.write("state/id", &serde_json::json!({"version": 1, "id": id, "run_dir": run}).to_string());
        layout
    }

    /// The same with a state as an earlier stead left it.
    pub fn with_state(self) -> (Self, Layout) {
        let layout = self.layout();
        (self, layout)
    }

    /// The command, given to another one to be run, such as unshare(1); by itself where none is named.
    pub fn under(&self, wrapper: &[&str], args: &[&str]) -> Command {
        let line: Vec<&str> = wrapper.iter().copied().chain([env!("CARGO_BIN_EXE_stead")]).collect();
        let mut command = Command::new(line[0]);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STEAD_")) {
            command.env_remove(name);
        }
        command.args(&line[1..]).args(args).stdin(Stdio::null()).env("HOME", self.0.path());
        for (variable, folder) in [("STATE_DIR", "state"), ("RUN_DIR", "run"), ("MANIFESTS", "manifests")] {
            command.env(format!("STEAD_{variable}"), self.path(folder));
        }
        command
    }
}

/// The branch main of a repository on this host, followed with nothing special.
pub fn git_source(origin: &Path) -> GitSource {
    GitSource {
        url: GitUrl::new(&format!("file://{}", origin.display())).unwrap(),
        reference: Reference::Branch("main".into()),
        path: PathBuf::new(),
        interval: Duration::from_secs(60),
        timeout: Duration::from_secs(60),
        size_max: 8 << 20,
        follow_force_push: false,
        ssh_key: None,
        verify: None,
        suspend: false,
    }
}
