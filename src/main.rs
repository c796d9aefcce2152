//! The `stead` command: arguments in, exit status out.

use std::process::ExitCode;

use clap::Parser;
use stead::cli::{Cli, Command, Context, Exit, LogFormat, execute, report};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; whatever else clap says is a command line that could not be understood.
            let is_answer = !error.use_stderr();
            let _ = error.print();
            return if is_answer { Exit::Converged.into() } else { Exit::Failed.into() };
        }
    };
    let context = Context::new(cli.flags.clone());
    start_log(&cli);
    match execute(&context, cli.command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            report(&error, &context.term);
            error.exit().into()
        }
    }
}

/// Logs go to standard error, one line a change. Commands other than `run` show what they do themselves, so they log only
/// what would otherwise go unsaid.
fn start_log(cli: &Cli) {
    let usual = if matches!(cli.command, Command::Run(_)) { "info" } else { "off" };
    let level = cli.flags.log_level.as_deref().unwrap_or(usual);
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new(usual));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match cli.flags.log_format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => {
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            log.with_ansi(is_terminal && std::env::var_os("NO_COLOR").is_none()).init();
        }
    }
}
