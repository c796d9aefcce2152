//! Stopping as a shell's Ctrl-Z does.

use std::io;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// Stops this process, by the default action of SIGTSTP though somebody listens to it; returns when it goes on. Where no shell could
/// have it go on, in an orphaned process group, the kernel does not stop it at all (setpgid(2)), as it would by SIGSTOP.
///
/// # Errors
/// None that a kernel was seen to give.
pub fn stop_until_continued() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    let before = unsafe { sigaction(Signal::SIGTSTP, &default) }?;
    let stopped = raise(Signal::SIGTSTP);
    // SAFETY: it is the action that was there before, and so one that may be there.
    unsafe { sigaction(Signal::SIGTSTP, &before) }?;
    Ok(stopped?)
}
