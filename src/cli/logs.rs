//! `stead logs`: the guest's console, or the VMM's own log.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};

use super::{CliError, Context, Exit, get};
use crate::config::Access;
use crate::names::VmName;

/// Show the guest's console, or the VMM's own log
#[derive(Debug, clap::Args)]
#[command(after_help = "\
On a terminal, control characters of the guest's are shown as text, so that a guest cannot take over the screen; in a pipe
every byte is passed on as it is.

Examples:
  stead logs web
  stead logs web -f
  stead logs web --vmm")]
pub struct Args {
    /// The VM
    name: VmName,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// The VMM's own log instead of the guest's console
    #[arg(long)]
    vmm: bool,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let stead = context.stead(Access::Reader)?;
    let layout = &stead.layout;
    let path = if args.vmm { layout.vmm_log(&args.name) } else { layout.console_log(&args.name) };
    let folder = layout.vm_dir(&args.name);
    if !folder.is_dir() {
        return Err(get::unknown(&stead, &args.name));
    }
    let is_terminal = context.term.out.is_terminal;
    let mut reader = Tail { file: None, at: 0 };
    if !args.follow {
        return match reader.pass_on(&path, is_terminal) {
            Err(CliError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                context.term.note(&format!("{} has written nothing yet", args.name));
                Ok(Exit::Converged)
            }
            other => other.map(|()| Exit::Converged),
        };
    }
    let (tell, changed) = mpsc::sync_channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reads raise events too, and say nothing new.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = tell.try_send(());
        }
    })?;
    watcher.watch(&folder, RecursiveMode::NonRecursive)?;
    loop {
        match reader.pass_on(&path, is_terminal) {
            Err(CliError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        // The wait is bounded in case an event is lost.
        let _ = changed.recv_timeout(Duration::from_secs(5));
    }
}

/// A file that grows, and how far it was read.
struct Tail {
    file: Option<(File, u64)>,
    at: u64,
}

impl Tail {
    /// Passes on what is new. A file that was cut or replaced is read from its start.
    fn pass_on(&mut self, path: &Path, is_terminal: bool) -> Result<(), CliError> {
        let failed = |error: io::Error| CliError::io(format!("read {}", path.display()), error);
        let found = path.symlink_metadata().map_err(failed)?;
        if self.file.as_ref().is_none_or(|(_, inode)| *inode != found.ino()) {
            self.file = Some((File::open(path).map_err(failed)?, found.ino()));
            self.at = 0;
        }
        let Some((file, _)) = &mut self.file else { return Ok(()) };
        if found.size() < self.at {
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at)).map_err(failed)?;
        let mut buffer = vec![0; 64 << 10];
        let mut out = io::stdout().lock();
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            self.at += count as u64;
            if is_terminal {
                out.write_all(harmless(&buffer[..count]).as_bytes())?;
            } else {
                out.write_all(&buffer[..count])?;
            }
        }
        out.flush()?;
        Ok(())
    }
}

/// The text with every control character but line ends and tabs shown as `\xNN`: a console is written by whoever owns the
/// guest, and an escape sequence can make a terminal do more than show.
fn harmless(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => shown.push(character),
            // Serial consoles end lines with both.
            '\r' => {}
            control if control.is_control() => shown.push_str(&format!("\\x{:02x}", u32::from(control))),
            other => shown.push(other),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_take_over_the_terminal() {
        assert_eq!(harmless(b"ok\r\n\tx\x1b]0;title\x07\xff\n"), "ok\n\tx\\x1b]0;title\\x07\u{fffd}\n");
    }
}
