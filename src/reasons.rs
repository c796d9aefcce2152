//! Every reason that stead gives for what it does, does not do or cannot do: one word each, what it means, and what to do. One
//! table, of which conditions, events, sources and errors take their words, and of which `docs/errors.md` is made.

use std::fmt;

/// What a reason is given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// A VM, in its conditions and in plans.
    Vm,
    /// Something that happened to a VM.
    Event,
    /// A git source.
    Source,
    /// Something that was done for the host as a whole, or that somebody asked for.
    Host,
    /// A command that could not run.
    Command,
}

/// A reason by its word, with what it means and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// What it is given for.
    pub about: About,
    /// What it means.
    pub meaning: &'static str,
    /// What to do about it; `None` where nothing is to be done.
    pub to_do: Option<&'static str>,
}

impl Reason {
    /// Whether the same again would end the same way, until somebody changes something. What the kernel refused may be there in
    /// a moment: a folder that is not mounted yet.
    pub fn is_lasting(self) -> bool {
        matches!(
            self,
            Self::ConfigurationInvalid
                | Self::RunDirTooLong
                | Self::StateCorrupt
                | Self::StateNewer
                | Self::StateNoFolder
                | Self::StateOfAnotherRunDir
                | Self::StateOfAnotherUser
                | Self::StateWritableByOthers
        )
    }
}

macro_rules! reasons {
    ($($about:ident $name:ident: $meaning:literal $(=> $to_do:literal)?;)*) => {
        /// Why something is as it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $name,)*
        }

        impl Reason {
            /// Each of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word that people and programs read.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// What it means, and what to do.
            pub fn explain(self) -> Explanation {
                match self {
                    $(Self::$name => Explanation {
                        about: About::$about,
                        meaning: $meaning,
                        to_do: None $(.or(Some($to_do)))?,
                    },)*
                }
            }
        }
    };
}

reasons! {
    // Of VMs that are as they should be, or on their way.
    Vm GuestRunning: "The guest runs.";
    Vm GuestStopped: "No guest runs.";
    Vm Converged: "The VM is as it is declared.";
    Vm AsExpected: "Nothing is wrong with the VM.";
    Vm Paused: "The guest's CPUs are halted, as declared or by somebody who uses the VMM's API."
        => "If it should run, declare `powerState: Running`.";
    Vm Stopped: "No VMM runs, as declared by `powerState: Stopped`.";
    Vm Starting: "The VMM is about to be spawned, or its guest not yet seen to run.";
    Vm Stopping: "The VM is being torn down.";
    Vm Finished: "The guest ended, and its `restartPolicy` lets it rest."
        => "To run it again: `stead restart NAME`, or `restartPolicy: Always`.";
    Vm TearingDown: "The VMM is asked to stop, and then all that it holds is freed. The message says why.";
    Vm PreparingDisk: "A disk is copied, made, grown or taken back from the trash before the VM starts.";
    Vm Forgetting: "The VM was deleted, and what is remembered of it is removed.";
    Vm Pausing: "The guest's CPUs are about to be halted.";
    Vm Resuming: "The guest's CPUs are about to run again.";
    Vm Repairing: "A tap is not on the bridge that it belongs on, and is put back.";

    // Of VMs that wait, or that somebody should look at.
    Vm BackingOff: "The VM failed, several times if so it says, and waits before it is started again."
        => "See why it ended: `stead describe NAME`, `stead logs NAME`, `stead logs --vmm NAME`. A new manifest, or `stead restart \
            NAME`, starts it at once.";
    Vm Unhealthy: "The VMM lives and does not answer on its API. It is left alone, since its guest may well run."
        => "See what it does: `stead logs --vmm NAME`. `stead restart NAME` ends it and starts it anew.";
    Vm IdentityUnknown: "It cannot be told whether the VMM lives, so the VM is neither started nor torn down."
        => "The message says what could not be looked at: often a process that holds the VM's vmm.lock and is not its VMM. End \
            that, or run stead as a user who may look at it.";
    Vm StateUnread: "What stead wrote down of the VM could not be read just now, so it is left as it is."
        => "The message names the file. Mend what keeps it from being read: a disk that fails, an owner or a mode that was changed.";
    Vm Dead: "The VMM is dead, and nothing was done about it yet."
        => "If no `stead run` is at work, make a pass: `stead reconcile --once`.";
    Vm InvalidManifest: "The manifest cannot be used, and the VM has no earlier one that could."
        => "Mend it where the message says; `stead validate PATH` shows every problem with its line.";
    Vm Conflict: "The VM is declared more than once, and none of its declarations is in force."
        => "Keep one of them: names are unique on a host.";
    Vm SourceIncomplete: "The VM's manifest is not there, but not all of its source could be read: it may be hidden. Nothing is deleted."
        => "Make the source readable: the message says what is missing.";
    Vm PruneDelay: "The manifest is gone. The VM is deleted if it stays so for a moment (`--prune-delay`).";
    Vm Protected: "The manifest is gone, and `stead.dev/prune: disabled` on the last one protects the VM."
        => "To delete it: `stead delete NAME`.";
    Vm KeptHere: "The manifest is for another host now, and `stead.dev/prune` or `stead.dev/suspend` keeps the VM here, while it may run \
                  there as well."
        => "See that it runs on one of them only; `stead delete NAME` ends it here.";
    Vm FolderReplaced: "The folder of manifests is empty, and not the one that the VM was applied from. Nothing is deleted."
        => "Mount or restore the folder. If it is meant to be empty, `stead delete NAME` deletes VMs one by one.";
    Vm PruneCap: "More VMs are gone from the manifests at once than are deleted without being asked for: more than two, and more than half."
        => "If that is meant: `stead plan` shows what would be deleted, and `stead approve DIGEST` lets it through. If not, bring \
            the manifests back.";
    Vm Unclaimed: "The VM lives in this state, and no manifest ever declared it."
        => "Declare it, and it is taken over as it is; or `stead delete NAME`.";
    Vm Suspended: "`stead.dev/suspend` asks to leave the VM alone, or `suspend` the source."
        => "Take it away for stead to go on.";
    Vm OnRestart: "The manifest changed in what a running VM cannot take up, and `updatePolicy: OnRestart` lets that wait."
        => "`stead restart NAME` takes it up now.";
    Vm BaseChanged: "The image under a copy-on-write disk is not what it was, so what was written over it means nothing any more. The disk \
                     is not attached."
        => "Put the image back as it was, or give the new one another name in the manifest: then the disk begins anew.";
    Vm Broken: "Something that the VM holds failed under it, such as a snapshot that is full, and cannot be mended while it lives."
        => "Free room in the state folder, then `stead restart NAME`: only another life may help.";
    Vm Unmet: "Something that the VM needs is not there: a program, `/dev/kvm`, an image, one that another VM writes to."
        => "The message says what. `stead doctor` looks at all that VMs need of this host.";
    Vm ActionFailed: "The last thing that was tried for the VM failed, and is tried again after a wait."
        => "The message says what was tried and why it failed; `stead doctor` finds what is wrong with the host.";
    Vm TeardownBlocked: "Something that the VM held could not be freed yet, mostly since somebody else uses it. It is tried again."
        => "The message names who holds it: unmount or close it there.";
    Vm RecordFlawed: "What stead wrote down of the VM cannot be trusted. A VM that lives goes on and is recorded again."
        => "Look at what was set aside beside it (*.corrupt-*): a full disk, or another program that writes there.";
    Vm KnownVulnerability: "The VMM's version has a known hole in what stead uses of it."
        => "Update it, as the message says, and restart the VM.";
    Vm Note: "There is something to know of the VM, though nothing is wrong yet: the message says what.";

    // What happened.
    Event Recorded: "Something was written down of the VM: a declaration taken up, the end of a life, a request.";
    Event Started: "The guest was seen to run.";
    Event Adopted: "A VM that lives was recorded, without touching it: after a restart of stead, or when its record was lost.";
    Event DiskPrepared: "A disk of the VM's own was made ready.";
    Event TornDown: "The VMM is gone, and all that it held is freed.";
    Event Deleted: "The VM is forgotten; only the count of its lives stays.";
    Event Resumed: "The guest's CPUs run again.";
    Event Repaired: "A tap is back on its bridge.";
    Event Failed: "Something that was tried failed."
        => "The message says what was tried and why it failed. It is tried again after a wait.";
    Event Held: "Something that is wanted is not done now. The message says why, and the conditions carry that reason.";

    // What `stead events` tells beside that.
    Host Requested: "Somebody asked for something, and it will be done.";
    Host Synced: "Another commit of a git source is in force.";
    Host SyncFailed: "A git source could not be synced. What was in force stays so."
        => "The message says why; `stead sources NAME` has the source's own reason.";
    Host Collected: "An orphan was freed: a kernel object of this state's that no record named.";
    Host CollectFailed: "An orphan could not be freed. It is tried again."
        => "The message says who uses it, or what the kernel said.";
    Host TrashEmptied: "Disks of a deleted VM were removed: they had been in the trash for seven days.";

    // Of git sources.
    Source Followed: "The source's commit is in force here.";
    Source NeverSynced: "Nothing of the source was fetched yet."
        => "`stead sync NAME` fetches it now.";
    Source RolledBack: "A person went back to an earlier commit, which stays in force."
        => "`stead rollback NAME --release` follows the repository again.";
    Source GitMissing: "git cannot be run."
        => "Install it, and let stead's PATH lead to it; under cron that is short.";
    Source FetchFailed: "The repository could not be fetched. The commit before stays in force."
        => "The message is git's own: an address, a key, a certificate, a server that is down. `stead sync NAME` tries again at once.";
    Source TimedOut: "git did not end in time."
        => "See whether the server answers; a repository that is large may need a longer `timeout`.";
    Source ForcePushed: "The branch's history was rewritten, so what it says now does not come after what is in force."
        => "If that is meant, set `forcePush: Follow`.";
    Source SignatureInvalid: "The commit is not signed, or by nobody who may."
        => "Sign it, or add the signer to `allowedSigners`.";
    Source TreeRefused: "The commit has what stead does not read: no such folder, a link, a submodule, names that differ in case alone."
        => "Mend it in the repository, as the message says.";
    Source ManifestsInvalid: "Something is wrong with a manifest of the commit, which is taken up as a whole or not at all."
        => "Mend it in the repository; `stead validate PATH` shows every problem, also before a push.";
    Source Empty: "The commit declares no VM at all, which is taken for a mistake."
        => "To delete all of its VMs, remove the source and use `stead delete NAME`.";
    Source HostUnclear: "It cannot be told which VMs of the commit are for this host."
        => "Give this host its name in the configuration: `host: {name: NAME}`.";
    Source UnknownCommit: "There is no such commit that was in force here."
        => "`stead sources NAME` lists those that were.";
    Source StateUnwritable: "What is kept of the source here cannot be read or written."
        => "The message names the file: free room, mend its owner or mode.";
    Source RecordInvalid: "What was remembered of the source cannot be read, or not be trusted. What it declares stays as it is."
        => "Move the file that the message names away: the source is then followed as if for the first time.";

    // Of commands.
    Command StateOfAnotherUser: "The state or run folder belongs to another user than the one who runs stead."
        => "Run stead as that user, or choose other folders with --state-dir and --run-dir.";
    Command StateWritableByOthers: "Others may write to the state or run folder, and so decide which processes stead ends."
        => "If what is in it can be trusted: chmod go-w FOLDER.";
    Command StateNoFolder: "What should be the state or run folder is something else."
        => "Move it away, or choose another folder with --state-dir and --run-dir.";
    Command StateOfAnotherRunDir: "The state was used with another run folder, where the sockets of its VMs lie."
        => "Set --run-dir or STEAD_RUN_DIR to the folder that the message names.";
    Command StateNewer: "A newer stead wrote the state's id."
        => "Use that stead, or another --state-dir.";
    Command StateCorrupt: "The state's id cannot be read."
        => "Move the file away: the id is derived anew, and is the same unless the folder was moved or copied.";
    Command RunDirTooLong: "The run folder's path leaves no room for the names of sockets, which have 108 bytes."
        => "Choose a shorter --run-dir.";
    Command StateInaccessible: "The kernel refused what stead wanted of the state or run folder."
        => "Run stead as root, or choose folders of your own with --state-dir and --run-dir.";
    Command ConfigurationInvalid: "Something is wrong with the configuration file."
        => "Mend each line that the message names; `stead schema configuration` has every field.";
    Command LockHeld: "Another stead acts on this state."
        => "Wait for it, ask it, or stop it. One acts on a state at a time.";
    Command LockFailed: "The state's lock cannot be opened, locked or written."
        => "See what STATE/lock is: it must be a plain file of this user.";
    Command StateUnlistable: "The folder of VMs cannot be listed."
        => "See what is in its place, and whose it is.";
    Command ControlSocketFailed: "`stead run` cannot listen on its control socket."
        => "See what is in its place in the run folder, and remove that.";
    Command TokenUnfit: "The token of `push` cannot be read, or keeps no secret."
        => "Make one: openssl rand -hex 32 >FILE; chmod 600 FILE.";
    Command MetricsAddressUnusable: "stead cannot listen for metrics where the configuration says."
        => "See who listens there (ss -lntx), or choose another `listen`.";
    Command PushAddressUnusable: "stead cannot listen for pushes where the configuration says."
        => "See who listens there (ss -lntx), or choose another `listen`.";
    Command DaemonSilent: "The running stead did not answer in time."
        => "Look at its log; it can be killed and started again without harm to any VM.";
    Command DaemonStranger: "A process of another user listens where the running stead should."
        => "Find out who that is (ss -xlp), and use a --run-dir that only this user can write to.";
    Command DaemonNonsense: "What the running stead answered makes no sense to this one."
        => "Let both be of the same version: restart the running one. VMs live on.";
    Command DaemonUnreachable: "The running stead could not be talked to."
        => "Ask again; if that does not help, look at its log and restart it. VMs live on.";
    Command BadRequest: "What was asked for makes no sense here: a VM, a source or a digest that there is not."
        => "The hint says what is there.";
    Command SystemRefused: "A file or a part of the system did not do its part."
        => "The message says what was tried, and what the kernel said; `stead doctor` looks at the whole host.";
    Command WatchFailed: "Changes cannot be watched."
        => "Raise the limit that is met: sysctl -w fs.inotify.max_user_instances=512 fs.inotify.max_user_watches=1048576. `stead \
            doctor` says how many of each are in use.";
    Command OutputFailed: "The output could not be written."
        => "See whether the disk that it goes to is full.";
    Command Bug: "Something happened that stead takes for impossible."
        => "Please report it with the message and the log. A `stead run` can be started again: VMs live on.";
}

impl Reason {
    /// The reason of this word, in any case of its letters.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.word().eq_ignore_ascii_case(word))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_its_word_and_told_in_sentences() {
        for reason in Reason::ALL {
            assert_eq!(Reason::of_word(&reason.word().to_lowercase()), Some(*reason));
            let Explanation { meaning, to_do, about } = reason.explain();
            assert!(meaning.ends_with('.') && to_do.is_none_or(|to_do| to_do.ends_with('.')), "{reason}");
            assert!(about != About::Command || to_do.is_some(), "{reason}: what is to be done?");
        }
        assert_eq!(Reason::of_word("NoSuchReason"), None);
    }
}
