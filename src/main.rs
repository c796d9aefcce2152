//! The `stead` command: arguments in, exit status out.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

use stead::cli::{Cli, CliError, Command, Context, Exit, LogFormat, execute, report};

fn main() -> ExitCode {
    end_with_any_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let context = Context::new(cli.flags.clone());
    let done = start_logging(&cli, &context).and_then(|()| execute(&context, cli.command));
    match done {
        Ok(exit) => exit.into(),
        Err(error) => {
            report(&error, context.term);
            error.exit().into()
        }
    }
}

/// A stead that went on with one of its threads dead would keep VMs that it no longer sees, and nobody would know. What was
/// half done is on record: the next one goes on from there.
fn end_with_any_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

/// Help, the version, or what is wrong with the command line. Not clap's own exit status of 2, which here means that a VM
/// failed.
fn usage(error: &clap::Error) -> ExitCode {
    // Whoever closed the stream does not want to know.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Converged.into(),
        _ => Exit::Failed.into(),
    }
}

/// Log lines go to standard error: one a change for `run`, only bugs for the others, which tell of changes and
/// failures themselves.
fn start_logging(cli: &Cli, context: &Context) -> Result<(), CliError> {
    let usual = if matches!(cli.command, Command::Run(_)) { "info" } else { "error" };
    let wanted = cli.flags.log_level.as_deref().filter(|level| !level.is_empty()).unwrap_or(usual);
    // A line in the middle of a screen helps nobody.
    let level = if cli.command.has_screen() && context.term.err.is_terminal { "off" } else { wanted };
    let filter = EnvFilter::try_new(level).map_err(|error| CliError::Usage {
        message: format!("--log-level {level:?}: {error}"),
        hint: Some("one of error, warn, info, debug and trace, or a filter such as stead=debug".to_owned()),
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(context.term.err.color);
    match cli.flags.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
