//! What a person is told when a command could not run.

use std::error::Error;
use std::io::{self, Write};

use super::{Exit, Term};
use crate::config::{ConfigurationError, LockError, StateError};
use crate::control::ControlError;
use crate::push::PushError;
use crate::reasons::Reason;
use crate::reconcile::ReconcileError;

/// Why a command could not run.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The configuration is no good.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// Its lock was not got.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The pass could not be made.
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    /// The running stead gave no answer.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A flag or a variable cannot be used.
    #[error("{message}")]
    Setting {
        /// What is wrong.
        message: String,
        /// What to do instead.
        hint: String,
    },
    /// What was asked for makes no sense here.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// A file or a part of the system did not do its part.
    #[error("could not {what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be watched.
    #[error("could not watch for changes")]
    Watch(#[from] notify::Error),
    /// Something cannot be written as JSON or YAML.
    #[error("could not write this as text: {0}")]
    Format(String),
    /// The output could not be written.
    #[error("could not write the output")]
    Output(#[source] io::Error),
    /// Whoever read the output has seen enough, as `head` does. No error to tell of.
    #[error("the reader of the output went away")]
    ReaderGone,
}

impl CliError {
    /// `could not WHAT`, with what the kernel said.
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// What a person can do about it.
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::State(error) => error.hint().or_else(|| self.reason().explain().to_do.map(str::to_owned)),
            Self::Setting { hint, .. } => Some(hint.clone()),
            Self::Usage { hint, .. } => hint.clone(),
            Self::Lock(LockError::Held { .. }) => {
                Some("one stead acts on a state at a time; stop it, wait for it, or use another --state-dir".to_owned())
            }
            Self::Control(ControlError::TimedOut(_)) => {
                Some("look at its log; it can be killed and started again without harm to any VM".to_owned())
            }
            _ => self.reason().explain().to_do.map(str::to_owned),
        }
    }

    /// Its reason, as `stead explain` knows it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::State(error) => match error {
                StateError::WrongOwner { .. } => Reason::StateOfAnotherUser,
                StateError::WritableByOthers { .. } => Reason::StateWritableByOthers,
                StateError::NotAFolder(_) => Reason::StateNoFolder,
                StateError::OtherRunDir { .. } => Reason::StateOfAnotherRunDir,
                StateError::Newer { .. } => Reason::StateNewer,
                StateError::Corrupt { .. } => Reason::StateCorrupt,
                StateError::RunDirTooLong(_) => Reason::RunDirTooLong,
                StateError::Io { .. } => Reason::StateInaccessible,
            },
            Self::Configuration(ConfigurationError::Invalid(_)) => Reason::ConfigurationInvalid,
            Self::Lock(LockError::Held { .. }) => Reason::LockHeld,
            Self::Lock(LockError::Io { .. }) => Reason::LockFailed,
            Self::Reconcile(error) => match error {
                ReconcileError::State { .. } => Reason::StateUnlistable,
                ReconcileError::Control { .. } => Reason::ControlSocketFailed,
                ReconcileError::Push(PushError::Token(_)) => Reason::TokenUnfit,
                ReconcileError::Push(PushError::Listen { .. }) => Reason::PushAddressUnusable,
                ReconcileError::Metrics(_) => Reason::MetricsAddressUnusable,
                ReconcileError::Worker(_) => Reason::Bug,
            },
            Self::Control(error) => match error {
                ControlError::TimedOut(_) => Reason::DaemonSilent,
                ControlError::Stranger { .. } => Reason::DaemonStranger,
                ControlError::Nonsense(_) => Reason::DaemonNonsense,
                ControlError::Io { .. } => Reason::DaemonUnreachable,
            },
            Self::Setting { .. } | Self::Usage { .. } => Reason::BadRequest,
            Self::Configuration(ConfigurationError::Unread { .. }) | Self::Io { .. } => Reason::SystemRefused,
            Self::Watch(_) => Reason::WatchFailed,
            Self::Format(_) => Reason::Bug,
            Self::Output(_) | Self::ReaderGone => Reason::OutputFailed,
        }
    }

    /// The exit status that tells scripts.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Lock(LockError::Held { .. }) => Exit::Locked,
            Self::ReaderGone => Exit::Converged,
            Self::Setting { .. } => Exit::Misconfigured,
            _ if self.reason().is_lasting() => Exit::Misconfigured,
            _ => Exit::Failed,
        }
    }
}

/// Errors of writing to the output: a reader that went away is no failure of ours.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::ReaderGone } else { Self::Output(error) }
    }
}

/// Tells of an error on standard error: what, why, and what to do.
pub fn report(error: &CliError, term: Term) {
    if matches!(error, CliError::ReaderGone) {
        return;
    }
    // With standard error gone there is nobody left to tell.
    let _ = io::stderr().write_all(describe(error, term).as_bytes());
}

/// An error with its causes, in one line where they are.
pub(super) fn in_full(error: &CliError) -> String {
    let mut parts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        parts.push(error.to_string());
        cause = error.source();
    }
    parts.join(": ")
}

fn describe(error: &CliError, term: Term) -> String {
    let hint = error.hint().map_or_else(String::new, |hint| format!("{} {hint}\n", term.err.strong("hint:")));
    // What is wrong with a question says it all.
    let reason = Some(error.reason()).filter(|reason| *reason != Reason::BadRequest);
    let reason = reason.map_or_else(String::new, |reason| format!("{} {reason}\n", term.err.strong("reason:")));
    format!("{} {}\n{hint}{reason}", term.err.bad("error:"), in_full(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ColorChoice;

    #[test]
    fn an_error_is_told_with_its_causes_and_what_to_do() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = CliError::State(StateError::Io { what: "make", path: "/var/lib/stead".into(), source: denied });
        let text = describe(&error, Term::new(ColorChoice::Never));
        assert!(text.starts_with("error: could not make /var/lib/stead: permission denied\nhint: "), "{text}");
        assert!(text.ends_with("\nreason: StateInaccessible\n"), "{text}");
    }

    #[test]
    fn a_held_lock_is_temporary_and_a_reader_gone_is_no_failure() {
        let held = LockError::Held { holder: None, state_dir: "/s".into() };
        assert_eq!(CliError::Lock(held).exit(), Exit::Locked);
        assert_eq!(CliError::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit(), Exit::Converged);
    }
}
