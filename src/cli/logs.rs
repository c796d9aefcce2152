//! `stead logs NAME`.

use std::io::Write;
use std::time::Duration;

use notify::RecursiveMode;

use super::follow::Follower;
use super::sanitize::Sanitizer;
use super::view::no_such_vm;
use super::watch::{Changes, until_interrupted};
use super::{CliError, Context, Exit};
use crate::config::{Access, open_state};
use crate::names::VmName;

/// How often to look without a sign of change: a net under the kernel's notices.
const NET: Duration = Duration::from_secs(10);

/// Arguments of `stead logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead logs web                   what the guest printed to its console
  stead logs web -f --tail 20      its last 20 lines, and what follows
  stead logs web --vmm             what Firecracker or QEMU itself had to say

A guest is not trusted: on a terminal, colours are dropped and other control characters shown as ^X. Into a file or a
pipe, and with --raw, its bytes go as they are.")]
pub struct Args {
    /// The VM
    name: VmName,

    /// Go on with what is printed from now on
    #[arg(short, long)]
    follow: bool,

    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,

    /// The log of the VMM instead of the guest's console
    #[arg(long)]
    vmm: bool,

    /// Do not touch control characters, also on a terminal
    #[arg(long)]
    raw: bool,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let Args { name, follow, tail, vmm, raw } = args;
    let layout = open_state(&context.settings()?, Access::Reader)?;
    let folder = layout.vm_dir(name);
    if !folder.is_dir() {
        return Err(no_such_vm(&layout, name));
    }
    let path = if *vmm { layout.vmm_log(name) } else { layout.console_log(name) };
    let failed = |source| CliError::io(format!("read {}", path.display()), source);
    let mut log = Follower::new(path.clone());
    if let Some(lines) = tail {
        log.skip_to_last(*lines).map_err(failed)?;
    }
    let mut output = Output { sanitizer: (context.term.out.is_terminal && !raw).then(Sanitizer::default) };
    if !*follow {
        if !read_new(&mut log, &mut output)? {
            context.term.note(&format!("{name} has printed nothing yet"));
        }
        output.finish()?;
        return Ok(Exit::Converged);
    }
    until_interrupted(async move {
        let wanted = path.clone();
        let mut changes = Changes::new(move |changed| changed == wanted)?;
        changes.add(&folder, RecursiveMode::NonRecursive)?;
        loop {
            read_new(&mut log, &mut output)?;
            changes.wait(NET).await;
        }
    })
}

/// Errors of reading and of writing the output are kept apart.
struct ReadError(CliError);

impl From<std::io::Error> for ReadError {
    fn from(source: std::io::Error) -> Self {
        Self(CliError::io("read the log", source))
    }
}

fn read_new(log: &mut Follower, output: &mut Output) -> Result<bool, CliError> {
    log.read_new(|piece| output.write(piece).map_err(|error| ReadError(error.into()))).map_err(|ReadError(error)| error)
}

struct Output {
    sanitizer: Option<Sanitizer>,
}

impl Output {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        match &mut self.sanitizer {
            Some(sanitizer) => out.write_all(sanitizer.push(piece).as_bytes())?,
            None => out.write_all(piece)?,
        }
        out.flush()
    }

    fn finish(self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if let Some(sanitizer) = self.sanitizer {
            out.write_all(sanitizer.finish().as_bytes())?;
        }
        out.flush()
    }
}
