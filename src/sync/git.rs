//! git, run so that nothing of what is fetched is ever executed, and none of its settings obeyed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{GitSource, SyncError};
use crate::host::{HostOps, ProgramRequest};

/// The most that a command may print that asks the repository here.
const OUTPUT_MAX: u64 = 256 << 20;
/// How long a command may take that asks the repository here.
const LOCAL_BOUND: Duration = Duration::from_secs(60);
/// What git says when it would write a larger file than it may: EFBIG.
const TOO_LARGE: &str = "File too large";
/// What of our environment git needs: credentials by git's own means, ssh's agent, proxies, certificates, keyrings.
const KEPT: &[&str] = &[
    "HOME",
    "USER",
    "LOGNAME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "SSH_AUTH_SOCK",
    "GNUPGHOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

/// The home of the user that runs stead, by passwd(5).
fn home_of_user() -> Option<OsString> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok()??;
    Some(user.dir.into_os_string())
}

/// git on one repository here.
pub(super) struct Git<'a> {
    host: &'a dyn HostOps,
    source: &'a GitSource,
    /// The repository, bare.
    pub(super) repository: PathBuf,
}

impl<'a> Git<'a> {
    pub(super) fn new(host: &'a dyn HostOps, source: &'a GitSource, repository: PathBuf) -> Self {
        Self { host, source, repository }
    }

    /// Asks the repository here.
    pub(super) fn ask(&self, arguments: &[&str]) -> Result<Vec<u8>, SyncError> {
        self.run(arguments, &[], LOCAL_BOUND, OUTPUT_MAX)
    }

    /// The same with something to read.
    pub(super) fn tell(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, SyncError> {
        self.run(arguments, input, LOCAL_BOUND, OUTPUT_MAX)
    }

    /// A line that git prints.
    pub(super) fn line(&self, arguments: &[&str]) -> Result<String, SyncError> {
        Ok(String::from_utf8_lossy(&self.ask(arguments)?).trim().to_owned())
    }

    /// Runs a command that may talk to the server, and takes as long as the user lets it.
    pub(super) fn talk(&self, arguments: &[&str]) -> Result<Vec<u8>, SyncError> {
        self.run(arguments, &[], self.source.timeout, self.source.size_max).map_err(|error| match error {
            SyncError::Git { what, said, code } if said.contains(TOO_LARGE) => {
                let why = format!("a file of it would be larger than maxSize, {} bytes", self.source.size_max);
                SyncError::Git { what, said: format!("{why}: {said}"), code }
            }
            error => error,
        })
    }

    fn run(&self, arguments: &[&str], input: &[u8], bound: Duration, file_max: u64) -> Result<Vec<u8>, SyncError> {
        let mut all: Vec<OsString> = vec!["--git-dir".into(), self.repository.clone().into()];
        for setting in self.settings() {
            all.extend(["-c".into(), setting.into()]);
        }
        all.extend(arguments.iter().map(OsString::from));
        let request = ProgramRequest {
            program: Path::new("git"),
            arguments: all,
            environment: self.environment(),
            // Whatever git looks for in the folder where it is run, it finds nothing.
            folder: Path::new("/"),
            input,
            bound,
            file_max,
        };
        let what = || format!("git {}", arguments.first().copied().unwrap_or_default());
        let done = self.host.run_program(&request).map_err(|source| SyncError::NoGit { what: what(), source })?;
        if done.timed_out {
            return Err(SyncError::TimedOut { what: what(), bound });
        }
        if !done.success {
            return Err(SyncError::Git {
                what: what(),
                said: tidied(&self.source.url.hidden_in(&done.errors)),
                code: done.code,
            });
        }
        Ok(done.output)
    }

    fn settings(&self) -> Vec<String> {
        let mut settings: Vec<String> = [
            // Nothing that came with the tree runs, and nothing of it is followed.
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "submodule.recurse=false",
            "fetch.recurseSubmodules=false",
            "protocol.allow=never",
            // What a stranger's server sends is looked at before it is kept.
            "fetch.fsckObjects=true",
            // What is larger than any manifest is looked at piece by piece: a blob of nothing but zeros takes no room in a
            // pack, and would take its whole size of memory.
            "core.bigFileThreshold=1m",
            // The record that names a commit follows what it is made of, and a power cut may come between.
            "core.fsync=all",
            // Nothing goes on behind our back.
            "gc.autoDetach=false",
            "maintenance.autoDetach=false",
            "credential.interactive=false",
            "log.showSignature=false",
        ]
        .map(str::to_owned)
        .to_vec();
        settings.push(format!("protocol.{}.allow=always", self.source.url.protocol()));
        if let Some(signers) = self.source.verify.as_ref().and_then(|verify| verify.allowed_signers.as_ref()) {
            settings.push(format!("gpg.ssh.allowedSignersFile={}", signers.display()));
            // A signature says itself of which kind it is, and those are not of the signers who were named.
            settings.extend(["gpg.openpgp.program=false", "gpg.x509.program=false"].map(str::to_owned));
        }
        settings
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let kept = KEPT.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
        // A service of the system has none (systemd.exec(5)), and the user's settings lie there.
        let home = std::env::var_os("HOME").is_none().then(home_of_user).flatten();
        let home = home.map(|home| (OsString::from("HOME"), home));
        let mut ssh = OsString::from("ssh -oBatchMode=yes");
        if let Some(key) = &self.source.ssh_key {
            ssh.push(" -oIdentitiesOnly=yes -i '");
            ssh.push(key.to_string_lossy().replace('\'', r"'\''"));
            ssh.push("'");
        }
        let fixed: [(OsString, OsString); 8] = [
            ("PATH".into(), path),
            ("LC_ALL".into(), "C".into()),
            // Nobody is there to answer.
            ("GIT_TERMINAL_PROMPT".into(), "0".into()),
            // Empty is nobody: it goes before the user's core.askPass, which git asks before 2.47 whatever it is told else.
            ("GIT_ASKPASS".into(), OsString::new()),
            ("SSH_ASKPASS_REQUIRE".into(), "never".into()),
            ("GIT_SSH_COMMAND".into(), ssh),
            ("GIT_NO_REPLACE_OBJECTS".into(), "1".into()),
            ("GIT_OPTIONAL_LOCKS".into(), "0".into()),
        ];
        kept.chain(home).chain(fixed).collect()
    }
}

/// What git said of its trouble, in a line or a few: progress and advice left out.
fn tidied(errors: &str) -> String {
    let is_trouble = |line: &&str| !line.is_empty() && !line.starts_with("hint:") && !line.starts_with("Auto packing");
    let lines: Vec<&str> = errors.split(['\n', '\r']).map(str::trim).filter(is_trouble).collect();
    // The last ones say why; a server may say a lot before.
    let text = lines[lines.len().saturating_sub(4)..].join("; ");
    text.chars().filter(|c| !c.is_control()).take(600).collect()
}
