//! Plans in words, for people.

use std::fmt;

use super::{Action, Hold, PersistReason, Preparation, TeardownReason};
use crate::names::Backing;
use crate::spec::DeletionPolicy;
use crate::state::ExitRecord;

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record { why, .. } => write!(f, "record: {why}"),
            Self::Persist { reason } => write!(f, "persist: {reason}"),
            Self::Start { incarnation, vmm, .. } => write!(f, "start with {vmm}, incarnation {incarnation}"),
            Self::Teardown { reason, .. } => write!(f, "teardown: {reason}"),
            Self::PrepareDisk { disk, how } => write!(f, "disk {}: {how}", disk.name),
            Self::Forget { disks: None } => f.write_str("forget it: only the count of its incarnations stays"),
            Self::Forget { disks: Some(DeletionPolicy::Retain) } => {
                f.write_str("forget it: the count of its incarnations stays, and its own disks")
            }
            Self::Forget { disks: Some(DeletionPolicy::Delete) } => {
                f.write_str("forget it: the count of its incarnations stays; its own disks go to the trash")
            }
            Self::Pause => f.write_str("pause"),
            Self::Resume => f.write_str("resume"),
            Self::RepairTap { tap, bridge: Some(bridge) } => write!(f, "put tap {tap} back on bridge {bridge}"),
            Self::RepairTap { tap, bridge: None } => write!(f, "take tap {tap} off its bridge"),
        }
    }
}

impl fmt::Display for Preparation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restore { .. } => f.write_str("take it back from the trash"),
            Self::SetAside { why } => write!(f, "set aside what is there, since {why}"),
            Self::Relocate => f.write_str("note the new name of its image"),
            Self::Create { backing: Backing::Copy } => f.write_str("copy its image"),
            Self::Create { backing: Backing::Cow | Backing::Qcow2 } => f.write_str("make its copy-on-write file"),
            Self::Grow { bytes } => write!(f, "grow it to {bytes} bytes"),
        }
    }
}

impl fmt::Display for PersistReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("its guest runs"),
            Self::RecordMissing => f.write_str("it is alive and has no record"),
            Self::RecordFlawed(why) => write!(f, "it is alive and its record cannot be trusted: {why}"),
            Self::RecordStale => f.write_str("it is alive and its record is of another life"),
            Self::HandlesChanged => f.write_str("what it holds changed"),
        }
    }
}

impl fmt::Display for TeardownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("its manifest is gone"),
            Self::Elsewhere => f.write_str("its manifest is for another host"),
            Self::DeleteRequested => f.write_str("its deletion was asked for"),
            Self::Stopped => f.write_str("it is declared Stopped"),
            Self::SpecChanged(fields) => write!(f, "changed: {}", fields.join(", ")),
            Self::RestartRequested => f.write_str("a restart was asked for"),
            Self::Died => f.write_str("its VMM is dead"),
            Self::NeverStarted(why) => write!(f, "its guest never ran: {why}"),
            Self::GuestShutDown => f.write_str("its guest shut down"),
            Self::Resumed => f.write_str("a teardown begun earlier goes on"),
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread(why) => write!(f, "its state cannot be read, so it is left as it is: {why}"),
            Self::IdentityUnknown(why) => write!(f, "cannot tell whether its VMM lives: {why}"),
            Self::Unhealthy(why) => write!(f, "its VMM lives but does not answer: {why}"),
            Self::Starting => f.write_str("waiting for its guest to run"),
            Self::BackingOff { failures, last, .. } => {
                write!(f, "backing off after {failures} failure{}", if *failures == 1 { "" } else { "s" })?;
                match last {
                    Some(ExitRecord { message: Some(message), .. }) => write!(f, ": {message}"),
                    Some(ExitRecord { status, .. }) => write!(f, ": {status}"),
                    None => Ok(()),
                }
            }
            Self::Finished(exit) => write!(f, "finished ({}); its restartPolicy lets it rest", exit.status),
            Self::InvalidManifest(problem) => write!(f, "its manifest is invalid: {problem}"),
            Self::SourceIncomplete(why) => write!(f, "its manifest may be hidden: {}", why.join("; ")),
            Self::PruneDelay(_) => f.write_str("its manifest is gone; waiting in case it comes back"),
            Self::Protected => f.write_str("its manifest is gone, and stead.dev/prune: disabled protects it"),
            Self::KeptHere => f.write_str(
                "its manifest is for another host, where it may run by now, and stead.dev/prune or stead.dev/suspend keeps it here",
            ),
            Self::FolderReplaced => {
                f.write_str("the manifest folder is empty and not the one it was applied from; is it mounted?")
            }
            Self::PruneCap { deletions, of } => {
                write!(f, "deleting {deletions} of {of} VMs is more than the prune cap lets through")
            }
            Self::Unclaimed => f.write_str("alive, and no manifest ever declared it"),
            Self::Suspended => f.write_str("stead.dev/suspend asks to leave it alone"),
            Self::OnRestart(fields) => write!(f, "changed, to take effect at its next start: {}", fields.join(", ")),
            Self::Conflict(why) | Self::BaseChanged(why) | Self::Broken(why) | Self::Unmet(why) => f.write_str(why),
        }
    }
}
