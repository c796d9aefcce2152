//! Git sources: the commit of a repository that is in force here.
//!
//! A sync fetches, looks at the commit as a whole (its signature, its tree, every manifest in it), and then puts it in force by
//! one durable write of STATE/sources/NAME/sync.json. Whatever goes wrong before that leaves the last good commit in force.
//! Manifests are read from the commit itself, which cannot change: there is no checkout that could be half made.

mod git;
mod tree;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::desired::hosts::HostIdentity;
use crate::desired::load::load_files;
use crate::desired::{Desired, Origin, Problem, SourceName, SourceState};
use crate::host::{HostOps, StateFileError};
use crate::reasons::Reason;
use crate::state::{AppliedCommit, FORMAT_VERSION, Flaw, SyncState, encode, parse_sync};
use git::Git;

/// The ref that a fetch brings here.
const SEEN: &str = "refs/stead/seen";
/// The ref that keeps the commit in force, and all before it, from being collected as garbage.
const APPLIED: &str = "refs/stead/applied";

/// Where a git that was killed leaves things, below its repository.
const LEFT_BEHIND: &[&str] = &["", "refs/stead", "objects", "objects/pack"];

/// Whether a git that is at work made this file, and no other.
fn is_left_behind(name: &str) -> bool {
    name.strip_suffix(".lock").is_some() || name.starts_with("tmp_") || name == "gc.pid"
}

/// A git repository that says which VMs should exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitSource {
    /// Where it is.
    pub url: GitUrl,
    /// What of it is followed.
    pub reference: Reference,
    /// The folder of manifests in it; empty is all of it.
    pub path: PathBuf,
    /// How often it is asked.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// The largest file that a fetch may write, in bytes.
    pub size_max: u64,
    /// Whether a branch whose history was rewritten is followed; else the last commit before that stays in force.
    pub follow_force_push: bool,
    /// The private key that ssh uses, and no other.
    pub ssh_key: Option<PathBuf>,
    /// Whose signature a commit must carry.
    pub verify: Option<Verify>,
    /// Whether it is left as it is for now.
    pub suspend: bool,
}

/// What of a repository is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A branch, wherever it goes.
    Branch(String),
    /// A tag.
    Tag(String),
    /// One commit, by its whole id.
    Commit(String),
}

/// Whose signature is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    /// On the commit, or on the tag that leads to it.
    pub of: Signed,
    /// The file of signers that `ssh-keygen` knows (ssh-keygen(1), ALLOWED SIGNERS). Without it, OpenPGP keys of the user's keyring.
    pub allowed_signers: Option<PathBuf>,
}

/// What is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    /// The commit.
    Head,
    /// The tag.
    Tag,
}

/// Where a repository is: one of the ways that git knows, by a protocol that runs no program of the url's choosing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitUrl {
    text: String,
    protocol: &'static str,
}

/// Why a text is no such url.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a git url is https://…, ssh://…, user@host:path, file:///…, or, where everybody on the way is trusted, http://… or git://…"
)]
pub struct NoGitUrl;

impl GitUrl {
    /// Reads one.
    ///
    /// # Errors
    /// Where it is none, or one of a protocol that may run any program, such as `ext::`.
    pub fn new(text: &str) -> Result<Self, NoGitUrl> {
        const KNOWN: &[&str] = &["https", "http", "ssh", "file", "git"];
        let is_clean = !text.starts_with('-') && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        let protocol = match text.split_once("://") {
            Some((scheme, rest)) if !rest.is_empty() => KNOWN.iter().copied().find(|known| *known == scheme),
            Some(_) => None,
            // The short form of ssh: a colon before any slash.
            None => text.split_once(':').and_then(|(host, path)| {
                let is_short = !host.is_empty() && !host.contains('/') && !path.is_empty() && !path.starts_with(':');
                is_short.then_some("ssh")
            }),
        };
        let protocol = protocol.filter(|_| is_clean).ok_or(NoGitUrl)?;
        Ok(Self { text: text.to_owned(), protocol })
    }

    /// The url as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it carries to prove who asks: for the web the whole of it, since a token may stand where a name does.
    fn credentials(&self) -> Option<&str> {
        let (_, rest) = self.text.split_once("://")?;
        let (user, _) = rest.split('/').next()?.rsplit_once('@')?;
        let is_secret = user.contains(':') || matches!(self.protocol, "https" | "http");
        Some(user).filter(|user| is_secret && !user.is_empty())
    }

    /// A text in which its credentials may stand, without them.
    fn hidden_in(&self, text: &str) -> String {
        let Some(all) = self.credentials() else { return text.to_owned() };
        let password = all.split_once(':').map(|(_, password)| password).filter(|password| !password.is_empty());
        let text = text.replace(all, "***");
        password.map_or_else(|| text.clone(), |password| text.replace(password, "***"))
    }

    /// Its protocol, as git calls it.
    pub fn protocol(&self) -> &'static str {
        self.protocol
    }
}

/// For logs and for people, without credentials that it may carry.
impl fmt::Display for GitUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.hidden_in(&self.text))
    }
}

impl GitSource {
    /// Who could decide what runs here beside those who are meant to, if anybody: what a person should know.
    pub fn warning(&self) -> Option<String> {
        let url = &self.url;
        match (&self.verify, url.protocol) {
            // A commit is what its id says, whoever sends it.
            _ if matches!(self.reference, Reference::Commit(_)) => None,
            (Some(_), _) | (None, "file") => None,
            (None, "http" | "git") => Some(format!(
                "nothing proves who answers for {url}: anybody on the way decides what runs here; use https or ssh, or `verify`"
            )),
            (None, _) => Some(format!(
                "no signature is asked for: whoever may push to {url} decides what runs here; `verify` asks for one"
            )),
        }
    }
}

/// What a sync came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Synced {
    /// The commit in force is what is to be followed.
    UpToDate,
    /// Another commit is in force now.
    Applied(Box<Taken>),
    /// Nothing was asked: it is suspended, or a person went back to an earlier commit.
    Held(&'static str),
}

/// A commit that has just been put in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Which, as it is remembered.
    pub commit: AppliedCommit,
    /// What it declares.
    pub desired: Desired,
}

/// Why the last good commit stays in force.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// git cannot be run.
    #[error("{what} cannot be run; is git installed?")]
    NoGit {
        /// The command.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// git failed.
    #[error("{what} failed{}: {said}", code.map_or_else(String::new, |code| format!(" with status {code}")))]
    Git {
        /// The command.
        what: String,
        /// What it said.
        said: String,
        /// Its exit status.
        code: Option<i32>,
    },
    /// It took too long.
    #[error("{what} did not end within {bound:?}")]
    TimedOut {
        /// The command.
        what: String,
        /// How long it had.
        bound: Duration,
    },
    /// The branch does not lead on from the commit in force.
    #[error(
        "the history of {branch} was rewritten: {to:.12} does not come after {from:.12}; set forcePush: Follow to follow it"
    )]
    ForcePushed {
        /// The branch.
        branch: String,
        /// The commit in force.
        from: String,
        /// Where it leads now.
        to: String,
    },
    /// Not signed, or not by one of those who may.
    #[error("commit {commit:.12} is not signed by anybody allowed: {why}")]
    Unsigned {
        /// The commit.
        commit: String,
        /// What git said.
        why: String,
    },
    /// Its tree is not one that stead reads.
    #[error("commit {commit:.12}: {why}")]
    TreeRefused {
        /// The commit.
        commit: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Something is wrong with a manifest in it.
    #[error("commit {commit:.12} has {} wrong, first {}", counted(problems.len()), problems.first().map_or_else(String::new, Problem::one_line))]
    Broken {
        /// The commit.
        commit: String,
        /// Everything that is wrong.
        problems: Vec<Problem>,
    },
    /// It declares no VM.
    #[error(
        "commit {commit:.12} declares no VM at all, which is taken for a mistake; to delete all VMs remove the source and use `stead delete`"
    )]
    Empty {
        /// The commit.
        commit: String,
    },
    /// It cannot be told which of its VMs are for this host.
    #[error("commit {commit:.12}: {why}")]
    HostUnclear {
        /// The commit.
        commit: String,
        /// Why.
        why: String,
    },
    /// There is no such commit to go back to.
    #[error("{0:?} is no commit that was in force here; `stead sources` lists them")]
    UnknownCommit(String),
    /// What is remembered cannot be read or written.
    #[error("{}", path.display())]
    State {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is remembered may be somebody else's.
    #[error(transparent)]
    Record(#[from] StateFileError),
    /// What is remembered cannot be read.
    #[error("{}: {flaw}; move it away for the repository to be followed as if for the first time", path.display())]
    Flawed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// A person went back already.
    #[error("it was rolled back already; name the commit to go to, one of those that `stead sources` lists")]
    RolledBack,
}

fn counted(problems: usize) -> String {
    if problems == 1 { "1 thing".to_owned() } else { format!("{problems} things") }
}

impl SyncError {
    /// Whether it is about a commit that was fetched.
    pub fn is_of_commit(&self) -> bool {
        match self {
            Self::ForcePushed { .. }
            | Self::Unsigned { .. }
            | Self::TreeRefused { .. }
            | Self::Broken { .. }
            | Self::HostUnclear { .. }
            | Self::Empty { .. } => true,
            Self::NoGit { .. }
            | Self::Git { .. }
            | Self::TimedOut { .. }
            | Self::UnknownCommit(_)
            | Self::State { .. }
            | Self::Record(_)
            | Self::Flawed { .. }
            | Self::RolledBack => false,
        }
    }

    /// In one word, for programs.
    pub fn reason(&self) -> &'static str {
        let reason = match self {
            Self::NoGit { .. } => Reason::GitMissing,
            Self::Git { .. } => Reason::FetchFailed,
            Self::TimedOut { .. } => Reason::TimedOut,
            Self::ForcePushed { .. } => Reason::ForcePushed,
            Self::Unsigned { .. } => Reason::SignatureInvalid,
            Self::TreeRefused { .. } => Reason::TreeRefused,
            Self::Broken { .. } => Reason::ManifestsInvalid,
            Self::Empty { .. } => Reason::Empty,
            Self::HostUnclear { .. } => Reason::HostUnclear,
            Self::UnknownCommit(_) => Reason::UnknownCommit,
            Self::State { .. } => Reason::StateUnwritable,
            Self::Record(_) | Self::Flawed { .. } => Reason::RecordInvalid,
            Self::RolledBack => Reason::RolledBack,
        };
        reason.word()
    }

    /// The error and its causes, in one line.
    pub fn one_line(&self) -> String {
        let cause = std::error::Error::source(self).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{self}{cause}")
    }
}

/// One git source and what is kept of it here.
pub struct Syncer<'a> {
    host: &'a dyn HostOps,
    name: &'a SourceName,
    source: &'a GitSource,
    here: &'a Arc<HostIdentity>,
    folder: PathBuf,
    git: Git<'a>,
}

impl<'a> Syncer<'a> {
    /// That of the source `name`, kept in `folder`, for this host.
    pub fn new(
        host: &'a dyn HostOps,
        name: &'a SourceName,
        source: &'a GitSource,
        here: &'a Arc<HostIdentity>,
        folder: PathBuf,
    ) -> Self {
        let git = Git::new(host, source, folder.join("repository.git"));
        Self { host, name, source, here, folder, git }
    }

    fn record_file(&self) -> PathBuf {
        self.folder.join("sync.json")
    }

    /// What is remembered of it.
    ///
    /// # Errors
    /// Where that cannot be read, or is of a later stead: to begin anew would forget that somebody went back to an earlier
    /// commit, and that a rewritten history is not followed.
    pub fn record(&self) -> Result<SyncState, SyncError> {
        let path = self.record_file();
        let Some(bytes) = self.host.read_state_file(&path)? else { return Ok(SyncState::default()) };
        parse_sync(&bytes).map_err(|flaw| SyncError::Flawed { path, flaw })
    }

    /// What the commit in force declares. A source of which that cannot be told is not complete: nothing of it is pruned.
    pub fn in_force(&self) -> Desired {
        self.read_in_force().unwrap_or_else(|error: SyncError| incomplete(self.name, error.one_line()))
    }

    /// The same, where it can be read.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn read_in_force(&self) -> Result<Desired, SyncError> {
        let record = self.record()?;
        if let Some(applied) = record.applied {
            // Below the path for which it was judged: another one in the configuration is taken up by the next sync.
            let files = tree::manifests(&self.git, &applied.commit, &applied.path)?;
            return Ok(load_files(self.name, self.here, files).desired);
        }
        let why = record.failure.map_or_else(String::new, |failure| format!(": {}", failure.message));
        Ok(incomplete(self.name, format!("it was never synced{why}")))
    }

    /// Remembers that what is in force does not say what is for this host, which has another name or labels since. Gives the
    /// error that says so, if that is the case.
    ///
    /// # Errors
    /// Where it cannot be remembered.
    pub fn note_gap(&self, in_force: &Desired) -> Result<Option<SyncError>, SyncError> {
        let mut record = self.record()?;
        let gap = in_force.sources.get(self.name).and_then(|state| state.incomplete.first());
        let (Some(why), Some(applied)) = (gap, &record.applied) else { return Ok(None) };
        let error = SyncError::HostUnclear { commit: applied.commit.clone(), why: why.clone() };
        record.fail(error.reason(), error.one_line(), self.host.now().wall);
        self.write(&record)?;
        Ok(Some(error))
    }

    /// Asks the repository, and puts what it says in force. What came of it is remembered in either case.
    ///
    /// # Errors
    /// Why the last good commit stays in force.
    pub fn sync(&self) -> Result<Synced, SyncError> {
        let mut record = self.record()?;
        let held = match (self.source.suspend, record.pinned) {
            (true, _) => Some("it is suspended"),
            (_, true) => Some("it was rolled back; `stead rollback --release` follows it again"),
            _ => None,
        };
        if let Some(why) = held {
            return Ok(Synced::Held(why));
        }
        let now = self.host.now().wall;
        let before = record.clone();
        let followed = self.follow(&record);
        record.tried_at = Some(now);
        match &followed {
            Ok(Some(taken)) => {
                record.apply(taken.commit.clone());
                record.failure = None;
            }
            Ok(None) => record.failure = None,
            Err(error) => record.fail(error.reason(), error.one_line(), now),
        }
        // That it was asked and nothing is new is worth no write.
        let is_news = record != SyncState { tried_at: record.tried_at, ..before };
        if is_news {
            self.write(&record)?;
        }
        Ok(followed?.map_or(Synced::UpToDate, |taken| Synced::Applied(Box::new(taken))))
    }

    /// Sees to the repository here after a sync that brought something: nobody has to wait for that. That it fails is no reason to
    /// follow nothing.
    pub fn tidy(&self) {
        let tidied = || {
            self.sweep()?;
            // First of all, since what is in force must not be collected; nothing is but here.
            if let Some(applied) = self.record()?.applied {
                self.git.ask(&["update-ref", APPLIED, &applied.commit])?;
            }
            self.git.ask(&["maintenance", "run", "--auto", "--quiet"])
        };
        if let Err(error) = tidied() {
            tracing::warn!(source = %self.name, "tidying up its repository: {}", error.one_line());
        }
    }

    /// Puts a commit in force that was before, and stays there: the last one, or the one whose id begins so.
    ///
    /// # Errors
    /// Where there is no such commit, or it cannot be read any more.
    pub fn roll_back(&self, to: Option<&str>) -> Result<Taken, SyncError> {
        let mut record = self.record()?;
        if to.is_none() && record.pinned {
            return Err(SyncError::RolledBack);
        }
        let known = record.history.iter().chain(&record.applied);
        let found = match to {
            None => record.history.first(),
            Some(start) => known.filter(|_| start.len() >= 4).find(|known| known.commit.starts_with(start)),
        };
        let commit = found.cloned().ok_or_else(|| SyncError::UnknownCommit(to.unwrap_or("HEAD~1").to_owned()))?;
        if self.source.verify.as_ref().is_some_and(|verify| verify.of == Signed::Head) {
            self.verify(&commit.commit)?;
        }
        let desired = self.judge(&commit.commit, &commit.path)?;
        // A lock that a killed git left would shut the way back.
        self.sweep()?;
        self.git.ask(&["update-ref", APPLIED, &commit.commit])?;
        let commit = AppliedCommit { applied_at: self.host.now().wall, ..commit };
        record.apply(commit.clone());
        record.pinned = true;
        record.failure = None;
        self.write(&record)?;
        Ok(Taken { commit, desired })
    }

    /// Follows the repository again after [`Syncer::roll_back`]; true when it did not.
    ///
    /// # Errors
    /// Where that cannot be remembered.
    pub fn release(&self) -> Result<bool, SyncError> {
        let mut record = self.record()?;
        let was_pinned = std::mem::take(&mut record.pinned);
        if was_pinned {
            self.write(&record)?;
        }
        Ok(was_pinned)
    }

    fn write(&self, record: &SyncState) -> Result<(), SyncError> {
        let path = self.record_file();
        let record = SyncState { version: FORMAT_VERSION, ..record.clone() };
        let write = || {
            self.host.make_folder(&self.folder)?;
            self.host.write_durable(&path, &encode(&record))
        };
        write().map_err(|source| SyncError::State { path: path.clone(), source })
    }

    /// The commit to be put in force, if it is another one.
    fn follow(&self, record: &SyncState) -> Result<Option<Taken>, SyncError> {
        self.sweep()?;
        if let Err(error) = self.fetch() {
            if !self.prepare()? {
                return Err(error);
            }
            self.fetch()?;
        }
        let Seen { commit, parents } = self.seen()?;
        let in_force = record.applied.as_ref().map(|applied| applied.commit.as_str());
        if in_force == Some(&commit.commit)
            && record.applied.as_ref().is_some_and(|applied| applied.path == commit.path)
        {
            return Ok(None);
        }
        let id = commit.commit.as_str();
        if let (Some(from), Reference::Branch(branch), false) =
            (in_force, &self.source.reference, self.source.follow_force_push)
            && !parents.iter().any(|parent| parent == from)
            && !self.comes_after(from, id)?
        {
            return Err(SyncError::ForcePushed { branch: branch.clone(), from: from.to_owned(), to: id.to_owned() });
        }
        self.verify(id)?;
        let desired = self.judge(id, &commit.path)?;
        Ok(Some(Taken { commit, desired }))
    }

    /// Makes the repository, if there is none or the one that there is is broken. Whether it did.
    fn prepare(&self) -> Result<bool, SyncError> {
        let path = &self.git.repository;
        let state = |source| SyncError::State { path: path.clone(), source };
        self.host.make_folder(&self.folder).map_err(state)?;
        match self.git.ask(&["rev-parse", "--git-dir"]) {
            Ok(_) => return Ok(false),
            // Anything else may be wrong with git, or with its settings.
            Err(SyncError::Git { said, .. }) if said.contains("not a git repository") => {}
            Err(error) => return Err(error),
        }
        if self.host.exists(&path.join("objects")).map_err(state)? {
            self.renew()?;
        }
        self.host.make_folder(path).map_err(state)?;
        self.git.ask(&["init", "--quiet", "--bare", "--template=", "--initial-branch=none"])?;
        Ok(true)
    }

    /// Moves the repository here out of the way: the next sync fetches everything anew.
    ///
    /// # Errors
    /// Where it cannot be moved.
    pub fn renew(&self) -> Result<(), SyncError> {
        let path = &self.git.repository;
        let aside = self.host.set_aside(path).map_err(|source| SyncError::State { path: path.clone(), source })?;
        if let Some(aside) = aside {
            tracing::warn!(source = %self.name, "the repository here is broken, and is at {} now", aside.display());
        }
        Ok(())
    }

    /// The same where `why` may be mended by it, and it was not done before: what was fetched anew and cannot be read either is
    /// fetched a third time for nothing.
    ///
    /// # Errors
    /// Where it is of no use, `why`; or where it cannot be moved.
    pub fn renew_once(&self, why: SyncError) -> Result<(), SyncError> {
        let is_of_content = matches!(why, SyncError::Git { .. } | SyncError::TreeRefused { .. });
        let names = self.host.list_folder(&self.folder);
        let names = names.map_err(|source| SyncError::State { path: self.folder.clone(), source })?;
        // What was set aside has the repository's name, and more.
        let was_renewed = names.iter().any(|name| name.starts_with("repository.git."));
        if is_of_content && !was_renewed { self.renew() } else { Err(why) }
    }

    /// Removes what a git that was killed left behind: its locks would stop every other, and half a pack takes room.
    fn sweep(&self) -> Result<(), SyncError> {
        for folder in LEFT_BEHIND {
            let folder = self.git.repository.join(folder);
            let state = |source| SyncError::State { path: folder.clone(), source };
            for name in self.host.list_folder(&folder).map_err(state)?.iter().filter(|name| is_left_behind(name)) {
                self.host.remove_file(&folder.join(name), false).map_err(state)?;
            }
        }
        Ok(())
    }

    fn fetch(&self) -> Result<(), SyncError> {
        let from = match &self.source.reference {
            Reference::Branch(branch) => format!("refs/heads/{branch}"),
            Reference::Tag(tag) => format!("refs/tags/{tag}"),
            Reference::Commit(commit) => commit.clone(),
        };
        // A commit that is here already need not be asked for; most servers give none by its id that no branch leads to.
        if let Reference::Commit(commit) = &self.source.reference
            && self.git.ask(&["cat-file", "-e", "--end-of-options", &format!("{commit}^{{commit}}")]).is_ok()
        {
            return self.git.ask(&["update-ref", SEEN, commit]).map(drop);
        }
        let refspec = format!("+{from}:{SEEN}");
        let arguments = [
            "fetch",
            "--quiet",
            "--no-auto-maintenance",
            "--no-tags",
            "--no-write-fetch-head",
            "--end-of-options",
            self.source.url.as_str(),
            &refspec,
        ];
        if let Err(error) = self.git.talk(&arguments) {
            // What it wrote until then may be all the room that there is, and why it failed is to be remembered.
            let _ = self.sweep();
            return Err(error);
        }
        Ok(())
    }

    /// The commit that the last fetch brought.
    fn seen(&self) -> Result<Seen, SyncError> {
        let format = "--format=%H%n%P%n%an <%ae>%n%s%n%cI";
        let text =
            self.git.line(&["log", "-1", "--no-color", format, "--end-of-options", &format!("{SEEN}^{{commit}}")])?;
        let mut lines = text.lines().map(str::to_owned);
        let mut line = || lines.next().unwrap_or_default();
        let (id, parents) = (line(), line().split_ascii_whitespace().map(str::to_owned).collect());
        let mut clean = || line().chars().filter(|c| !c.is_control()).take(200).collect();
        let (author, subject, committed_at) = (clean(), clean(), clean());
        let (path, applied_at) = (self.source.path.clone(), self.host.now().wall);
        Ok(Seen { commit: AppliedCommit { commit: id, author, subject, committed_at, path, applied_at }, parents })
    }

    /// Whether the history of `to` has `from` in it.
    fn comes_after(&self, from: &str, to: &str) -> Result<bool, SyncError> {
        // One that is not even here any more is in no history.
        if self.git.ask(&["cat-file", "-e", &format!("{from}^{{commit}}")]).is_err() {
            return Ok(false);
        }
        match self.git.ask(&["merge-base", "--is-ancestor", from, to]) {
            Ok(_) => Ok(true),
            Err(SyncError::Git { code: Some(1), .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn verify(&self, commit: &str) -> Result<(), SyncError> {
        let Some(verify) = &self.source.verify else { return Ok(()) };
        let done = match verify.of {
            Signed::Head => self.git.ask(&["verify-commit", commit]),
            Signed::Tag => {
                // The signature is on the name inside: a good tag under another one's name is none.
                let tag = self.git.line(&["cat-file", "tag", SEEN]).unwrap_or_default();
                let name = tag.lines().find_map(|line| line.strip_prefix("tag "));
                if !matches!(&self.source.reference, Reference::Tag(wanted) if Some(wanted.as_str()) == name) {
                    let why = match name {
                        Some(name) => format!("the tag is signed as {name:?}"),
                        None => "the tag carries no signature".to_owned(),
                    };
                    return Err(SyncError::Unsigned { commit: commit.to_owned(), why });
                }
                self.git.ask(&["verify-tag", SEEN])
            }
        };
        match done {
            Ok(_) => Ok(()),
            Err(SyncError::Git { said, .. }) => {
                let why = if said.is_empty() { "it carries no signature".to_owned() } else { said };
                Err(SyncError::Unsigned { commit: commit.to_owned(), why })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether every manifest of a commit is sound: one that is not would keep its VM as it is and let the others change, and
    /// what was changed together is to be taken up together.
    /// Gives what they declare.
    fn judge(&self, commit: &str, path: &Path) -> Result<Desired, SyncError> {
        let read = load_files(self.name, self.here, tree::manifests(&self.git, commit, path)?);
        let commit = commit.to_owned();
        if let Some(why) = read.gap {
            return Err(SyncError::HostUnclear { commit, why });
        }
        if !read.desired.problems.is_empty() {
            return Err(SyncError::Broken { commit, problems: read.desired.problems });
        }
        if let Some((name, origins)) = read.clashes.first_key_value() {
            let places: Vec<String> = origins.iter().map(Origin::to_string).collect();
            let why = format!(
                "VM {name} is declared {} times for one host: {}; keep one, or give them selectors that no host meets both of",
                places.len(),
                places.join(", ")
            );
            return Err(SyncError::TreeRefused { commit, why });
        }
        let state = read.desired.sources.get(self.name);
        if state.is_none_or(|state| state.empty) {
            return Err(SyncError::Empty { commit });
        }
        Ok(read.desired)
    }
}

/// A commit that is here, and may be put in force.
struct Seen {
    commit: AppliedCommit,
    /// The commits that it was made from.
    parents: Vec<String>,
}

fn incomplete(name: &SourceName, why: String) -> Desired {
    let state = SourceState { incomplete: vec![why], root: None, empty: true, elsewhere: Arc::default() };
    Desired { sources: [(name.clone(), state)].into(), ..Desired::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_that_run_nothing_but_what_they_say() {
        for (good, protocol) in [
            ("https://example.org/fleet.git", "https"),
            ("ssh://git@example.org:22/fleet.git", "ssh"),
            ("git@example.org:fleet.git", "ssh"),
            ("file:///srv/fleet.git", "file"),
            ("git://127.0.0.1/fleet.git", "git"),
        ] {
            assert_eq!(GitUrl::new(good).unwrap().protocol(), protocol, "{good}");
        }
        for bad in [
            "",
            "ext::sh -c id",
            "fd::17",
            "-oProxyCommand=id",
            "/srv/fleet.git",
            "ftp://x/y",
            "https://",
            "a b:c",
            "x::y",
        ] {
            assert_eq!(GitUrl::new(bad), Err(NoGitUrl), "{bad}");
        }
    }

    #[test]
    fn a_repository_elsewhere_whose_signatures_nobody_checks_is_warned_of() {
        let source = |url: &str, verify: Option<Verify>| GitSource {
            url: GitUrl::new(url).unwrap(),
            reference: Reference::Branch("main".into()),
            path: PathBuf::new(),
            interval: Duration::ZERO,
            timeout: Duration::ZERO,
            size_max: 0,
            follow_force_push: false,
            ssh_key: None,
            verify,
            suspend: false,
        };
        let verify = || Some(Verify { of: Signed::Head, allowed_signers: None });
        assert_eq!(source("file:///srv/x", None).warning(), None);
        assert_eq!(source("git://h/x", verify()).warning(), None);
        assert!(source("git://h/x", None).warning().is_some_and(|why| why.contains("on the way")));
        let told = source("https://token@h/x", None).warning().unwrap();
        assert!(told.contains("may push to https://***@h/x"), "{told}");
    }

    #[test]
    fn a_password_is_shown_to_nobody() {
        let url = GitUrl::new("https://bot:secret@example.org/fleet.git").unwrap();
        assert_eq!(url.to_string(), "https://***@example.org/fleet.git");
        assert_eq!(url.as_str(), "https://bot:secret@example.org/fleet.git");
        assert_eq!(
            url.hidden_in("cannot reach https://bot:secret@example.org"),
            "cannot reach https://***@example.org"
        );
        let at = GitUrl::new("https://bot:se@cret@example.org/a@b.git").unwrap();
        assert_eq!(at.to_string(), "https://***@example.org/a@b.git");
        assert_eq!(GitUrl::new("https://ghp_token@h/x").unwrap().to_string(), "https://***@h/x");
        assert_eq!(GitUrl::new("ssh://git@h/x").unwrap().to_string(), "ssh://git@h/x");
    }
}
