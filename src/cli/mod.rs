//! The `stead` command: one file per command, and what they share.

mod act;
mod adopt;
mod approve;
mod completions;
mod delete;
mod describe;
mod doctor;
mod error;
mod events;
mod exit;
mod explain;
mod flags;
mod follow;
mod gc;
mod get;
mod holdings;
mod logging;
mod logs;
mod man;
mod once;
mod parts;
mod plan;
mod progress;
mod reconcile;
mod render;
mod restart;
mod rollback;
mod run;
mod sanitize;
mod schema;
mod sources;
mod sync;
mod table;
mod term;
mod top;
mod validate;
mod view;
mod watch;

pub use error::{CliError, report};
pub use exit::Exit;
pub use explain::catalogue;
pub use flags::{Flags, LogFormat};
pub use logging::start as start_logging;
pub use term::{ColorChoice, Term};

use clap::{Parser, Subcommand};

use crate::config::{Access, Settings, StateLock, open_state};
use crate::reconcile::Stead;

/// Keeps this host's microVMs as YAML manifests declare them
///
/// Manifests in a folder say which VMs should exist; stead looks at which do, plans what is missing, and does it.
/// Stopping, killing or upgrading stead never stops a VM.
#[derive(Debug, Parser)]
#[command(name = "stead", version, max_term_width = 120, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  stead validate web.yaml      check a manifest without touching the host
  stead plan                   see what would be done, and why
  stead run                    keep the host as declared, until stopped
  stead get                    see every VM

Exit status:
  0   done, or nothing to do
  1   could not run, or bad input
  2   finished, but a VM failed, is held or is backing off, or the time was up
  3   changes pending (plan, reconcile --dry-run)
  4   a safety gate refused; `stead plan` shows which, and the digest to approve
  75  another stead works on this state
  78  a flag, a variable, the configuration file or the state's folder cannot be used

Every setting has a STEAD_* variable; `--help` shows them.")]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub flags: Flags,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What stead can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep the host as declared, until stopped
    Run(run::Args),
    /// Make one pass to convergence, for cron
    Reconcile(reconcile::Args),
    /// Show what would be done, and why
    Plan(plan::Args),
    /// Show VMs, their liveness proven anew
    Get(get::Args),
    /// Show VMs on a screen of their own, kept up to date
    Top(top::Args),
    /// Show everything about one VM
    Describe(describe::Args),
    /// Show what was done here, and what was held back
    Events(events::Args),
    /// Show the guest's console, or the VMM's own log
    Logs(logs::Args),
    /// Restart a VM once
    Restart(restart::Args),
    /// Stop a VM that no manifest declares, and forget it
    Delete(delete::Args),
    /// Take over VMs that another manager left
    Adopt(adopt::Args),
    /// Let deletions through that a safety gate holds back
    Approve(approve::Args),
    /// Show where manifests come from, and which commits are in force
    Sources(sources::Args),
    /// Fetch git sources now
    Sync(sync::Args),
    /// Put an earlier commit of a git source in force
    Rollback(rollback::Args),
    /// Free what VMs left in the kernel and nothing accounts for
    Gc(gc::Args),
    /// Check this host, and say how to mend what is wrong
    Doctor(doctor::Args),
    /// Say what a reason means, and what to do
    Explain(explain::Args),
    /// Check manifests without touching the host
    Validate(validate::Args),
    /// Print the JSON Schema of manifests or the configuration, for editors
    Schema(schema::Args),
    /// Print completions for a shell
    Completions(completions::Args),
    /// Write manual pages, for who packages stead
    #[command(hide = true)]
    Man(man::Args),
}

impl Command {
    /// Whether it draws on the whole terminal.
    pub fn has_screen(&self) -> bool {
        matches!(self, Self::Top(args) if args.has_screen())
    }
}

/// What every command works with.
#[derive(Debug)]
pub struct Context {
    /// What the user set; not needed by commands that touch neither host nor state.
    flags: Flags,
    /// Where output goes.
    pub term: Term,
}

impl Context {
    /// Reads colours off the flags and the environment.
    pub fn new(flags: Flags) -> Self {
        let term = Term::new(flags.color);
        Self { flags, term }
    }

    /// What the user set, with defaults filled in.
    fn settings(&self) -> Result<Settings, CliError> {
        self.flags.settings(&crate::config::Environment::current())
    }

    /// The state and its host, to look at.
    fn reader(&self) -> Result<Stead, CliError> {
        let settings = self.settings()?;
        let layout = open_state(&settings, Access::Reader)?;
        let host = parts::host(&settings)?;
        Ok(Stead { settings, layout, host }.knowing_its_host(false))
    }

    /// The state and its host, to act on. From now on until this process ends, `command` is the only one to do so.
    fn actor(&self, command: &str) -> Result<Stead, CliError> {
        let settings = self.settings()?;
        let layout = open_state(&settings, Access::Actor)?;
        let lock = StateLock::take(&layout, command)?;
        let host = parts::host(&settings)?;
        // Not given back when the command returns: a call to the host that hangs may still be under way then, on a thread of
        // its own that nobody waits for. The kernel gives it back with the last thread.
        std::mem::forget(lock);
        Ok(Stead { settings, layout, host }.knowing_its_host(true))
    }
}

/// Carries out a command.
pub fn execute(context: &Context, command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Run(args) => run::execute(context, &args),
        Command::Reconcile(args) => reconcile::execute(context, &args),
        Command::Plan(args) => plan::execute(context, &args),
        Command::Get(args) => get::execute(context, &args),
        Command::Top(args) => top::execute(context, &args),
        Command::Describe(args) => describe::execute(context, &args),
        Command::Events(args) => events::execute(context, &args),
        Command::Logs(args) => logs::execute(context, &args),
        Command::Restart(args) => restart::execute(context, args),
        Command::Delete(args) => delete::execute(context, args),
        Command::Adopt(args) => adopt::execute(context, &args),
        Command::Approve(args) => approve::execute(context, args),
        Command::Sources(args) => sources::execute(context, &args),
        Command::Sync(args) => sync::execute(context, &args),
        Command::Rollback(args) => rollback::execute(context, args),
        Command::Gc(args) => gc::execute(context, &args),
        Command::Doctor(args) => doctor::execute(context, &args),
        Command::Explain(args) => explain::execute(context, &args),
        Command::Validate(args) => validate::execute(context, &args),
        Command::Schema(args) => schema::execute(context, &args),
        Command::Completions(args) => completions::execute(context, &args),
        Command::Man(args) => man::execute(context, &args),
    }
}

/// Settings whose every folder lies in `home`.
#[cfg(test)]
pub(crate) fn test_settings(home: &std::path::Path) -> Settings {
    let cli = Cli::try_parse_from(["stead", "get"]).expect("a command line without flags is valid");
    let environment = crate::config::Environment {
        uid: 1000,
        home: Some(home.to_owned()),
        config_home: None,
        state_home: None,
        runtime_dir: Some(home.join("run")),
        run_user: None,
        hostname: "a1".to_owned(),
        machine_id: None,
        arch: "x86_64".to_owned(),
    };
    cli.flags.settings(&environment).expect("every folder has a default")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn who_acts_is_alone_until_its_process_ends() {
        let home = tempfile::tempdir().unwrap();
        let folder = |name: &str| home.path().join(name).display().to_string();
        let (state, run) = (folder("state"), folder("run"));
        let cli = Cli::try_parse_from(["stead", "--state-dir", &state, "--run-dir", &run, "get"]).unwrap();
        let context = Context::new(cli.flags);
        // What the command had is gone, as when it returned; a thread of it may still act.
        drop(context.actor("run").unwrap());
        assert!(matches!(context.actor("reconcile"), Err(CliError::Lock(_))), "a second actor");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_settings_has_a_variable_and_every_argument_a_help_text() {
        let command = Cli::command();
        for arg in command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())) {
            let variable = arg.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            assert!(variable.starts_with("STEAD_"), "{}", arg.get_id());
        }
        for sub in command.get_subcommands() {
            for arg in sub.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", sub.get_name(), arg.get_id());
            }
        }
    }
}
