//! The `stead` command: arguments in, exit status out.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use stead::cli::{Cli, Context, Exit, execute, report, start_logging};

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
        _ => Exit::Misconfigured.into(),
    }
}
