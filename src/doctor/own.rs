//! What is stead's own: its configuration, its folders, its records, the one that runs.

use std::path::{Path, PathBuf};

use super::{Check, Daemon, Finding, Manifests, Refused, StateLook, Trouble};
use crate::desired::SourceName;
use crate::host::checkup::{Folder, Owner};

/// How many of many things are told one by one.
const TOLD_MAX: usize = 5;

pub(super) fn configuration(read: &Result<(), Refused>) -> Finding {
    match read {
        Ok(()) => Finding::ok(Check::Configuration, "sound"),
        Err(refused) => {
            let mend = refused.mend.clone();
            let mend = mend
                .unwrap_or_else(|| "mend it where it says; `stead schema configuration` has every field".to_owned());
            Finding::failure(Check::Configuration, refused.why.clone(), mend)
        }
    }
}

pub(super) fn state(state: &Result<StateLook, Refused>) -> Finding {
    let check = Check::State;
    match state {
        Ok(look) if look.exists => Finding::ok(check, format!("{}, with {} VMs", look.folder.display(), look.vms)),
        Ok(look) => {
            Finding::skipped(check, format!("{} is not there yet; the first pass makes it", look.folder.display()))
        }
        Err(refused) => {
            let mend = refused.mend.clone();
            let mend = mend.unwrap_or_else(|| "choose another folder with --state-dir and --run-dir".to_owned());
            Finding::failure(check, refused.why.clone(), mend)
        }
    }
}

pub(super) fn records(state: &Result<StateLook, Refused>) -> Finding {
    let check = Check::Records;
    let Ok(look) = state else { return Finding::skipped(check, "the state cannot be used") };
    let mut troubles = Vec::new();
    if !look.flaws.is_empty() {
        let mend = "let stead make a pass: it sets them aside and records live VMs again; what is set aside tells what happened";
        troubles.push(Trouble::warning(some(&look.flaws), mend));
    }
    if !look.aside.is_empty() {
        let files: Vec<String> = look.aside.iter().map(|file| file.display().to_string()).collect();
        let mend =
            "find out what broke them (a full or failing disk, another program); then remove them, nothing reads them";
        troubles.push(Trouble::warning(format!("set aside as broken: {}", some(&files)), mend));
    }
    Finding::of_troubles(check, troubles, format!("those of {} VMs can be read", look.vms))
}

pub(super) fn folders(folders: &[(PathBuf, Folder)], me: u32) -> Finding {
    let mut troubles = Vec::new();
    for (path, folder) in folders {
        let shown = path.display();
        let Some(owner) = &folder.owner else {
            let mend = format!("make it (mkdir -p {shown}), or mount what belongs there");
            troubles.push(Trouble::failure(format!("there is no {shown}"), mend));
            continue;
        };
        if let Some(why) = &folder.unreadable {
            let mend = format!("let user {me} read it: chmod and chown {shown}");
            troubles.push(Trouble::failure(format!("{shown} cannot be listed: {why}"), mend));
        }
        others(owner, path, 1, me, &mut troubles);
        for (owner, path, count) in &folder.below {
            others(owner, path, *count, me, &mut troubles);
        }
    }
    if folders.is_empty() {
        return Finding::skipped(Check::Folders, "manifests come from no folder");
    }
    let all: Vec<String> = folders.iter().map(|(path, _)| path.display().to_string()).collect();
    Finding::of_troubles(Check::Folders, troubles, all.join(", "))
}

/// Who else may write to a file or folder of manifests, of which there are so many with the same owner and mode.
fn others(owner: &Owner, path: &Path, count: u64, me: u32, troubles: &mut Vec<Trouble>) {
    let shown = match count {
        1 => path.display().to_string(),
        _ => format!("{} and {} more", path.display(), count - 1),
    };
    let file = path.display();
    if owner.mode & 0o002 != 0 {
        let found = format!("anybody may write to {shown} ({:04o}), and so decide what runs here", owner.mode);
        troubles.push(Trouble::failure(found, format!("chmod o-w {file}")));
    } else if owner.mode & 0o020 != 0 && owner.group.id != 0 {
        let group = owner.group.name.clone().unwrap_or_else(|| owner.group.id.to_string());
        let found = format!("group {group} may write to {shown} ({:04o}), and so decide what runs here", owner.mode);
        troubles.push(Trouble::warning(found, format!("if that is not meant: chmod g-w {file}")));
    }
    if owner.user.id != me && owner.user.id != 0 {
        let found = format!("{shown} belongs to user {}, who decides what runs here", owner.user.id);
        troubles.push(Trouble::warning(found, format!("if that is not meant: chown {me} {file}")));
    }
}

pub(super) fn sources(unsynced: &[(SourceName, String)], any: bool) -> Finding {
    if !any {
        return Finding::skipped(Check::Sources, "no git source is configured");
    }
    let trouble = |(name, why): &(SourceName, String)| {
        let mend =
            format!("`stead sources {name}` tells more; once it is mended, `stead sync {name}` follows it at once");
        Trouble::warning(format!("source {name} is not followed: {why}"), mend)
    };
    Finding::of_troubles(Check::Sources, unsynced.iter().map(trouble).collect(), "followed")
}

pub(super) fn manifests(manifests: Option<&Manifests>) -> Finding {
    let check = Check::Manifests;
    let Some(manifests) = manifests else {
        return Finding::skipped(check, "they are not read without a sound configuration and state");
    };
    let mut troubles = Vec::new();
    if !manifests.problems.is_empty() {
        let mend = "mend them where they say; `stead validate PATH` shows each with its line";
        troubles.push(Trouble::failure(some(&manifests.problems), mend));
    }
    if !manifests.incomplete.is_empty() {
        let mend = "until all of a source can be read, nothing that it does not declare is deleted: make it readable";
        troubles.push(Trouble::failure(some(&manifests.incomplete), mend));
    }
    Finding::of_troubles(check, troubles, format!("{} VMs declared for this host, all valid", manifests.vms))
}

pub(super) fn daemon(daemon: &Daemon, version: &str) -> Finding {
    let check = Check::Daemon;
    match daemon {
        Daemon::Answers { version: other, pid, .. } if other == version => {
            Finding::ok(check, format!("`stead run` answers, pid {pid}, version {other}"))
        }
        Daemon::Answers { version: other, pid, .. } => Finding::warning(
            check,
            format!("`stead run`, pid {pid}, is of version {other}, and this is {version}"),
            "restart it (systemctl restart stead): VMs live on and are adopted",
        ),
        Daemon::None { locked: true } => Finding::warning(
            check,
            "a stead works on this state and listens to nobody",
            "it is a pass, which ends by itself, or a `stead run` whose socket was removed: then restart that",
        ),
        Daemon::None { locked: false } => {
            Finding::skipped(check, "no `stead run` is at work; fine where cron or a timer makes passes")
        }
        Daemon::Fails(why) => Finding::failure(
            check,
            why.clone(),
            "look at its log (journalctl -u stead); it can be killed and started again without harm to any VM",
        ),
        Daemon::NotAsked => Finding::skipped(check, "the state cannot be used, so it is not known where it listens"),
    }
}

/// The first few, and how many more.
fn some(all: &[String]) -> String {
    let mut told = all.iter().take(TOLD_MAX).cloned().collect::<Vec<_>>().join("; ");
    if all.len() > TOLD_MAX {
        told += &format!("; and {} more", all.len() - TOLD_MAX);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{State, samples};
    use crate::host::checkup::User;

    fn refused(mend: Option<&str>) -> Refused {
        Refused { why: "it is broken".to_owned(), mend: mend.map(str::to_owned) }
    }

    #[test]
    fn what_cannot_be_read_is_a_failure_with_what_to_do() {
        let finding = configuration(&Err(refused(None)));
        assert!(finding.state == State::Failure && finding.mend.unwrap().contains("stead schema configuration"));
        let finding = state(&Err(refused(Some("chmod it"))));
        assert_eq!((finding.state, finding.mend.as_deref()), (State::Failure, Some("chmod it")));
        assert_eq!(records(&Err(refused(None))).state, State::Skipped);
        assert_eq!(manifests(None).state, State::Skipped);
        let new = StateLook { exists: false, ..samples::state() };
        assert_eq!(state(&Ok(new)).state, State::Skipped);
    }

    #[test]
    fn broken_records_are_told_one_by_one_up_to_a_few() {
        let flaws: Vec<String> = (1..=7).map(|number| format!("flaw {number}")).collect();
        let finding = records(&Ok(StateLook { flaws, ..samples::state() }));
        assert!(finding.found.contains("flaw 5; and 2 more"), "{finding:?}");
        let aside = vec![PathBuf::from("/s/vms/web/handles.json.corrupt-1")];
        let finding = records(&Ok(StateLook { aside, ..samples::state() }));
        assert!(finding.state == State::Warning && finding.found.contains("handles.json.corrupt-1"));
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_told() {
        let user = |id| User { id, name: None };
        let owned = |owner, group, mode| Folder {
            owner: Some(Owner { user: user(owner), group: user(group), mode }),
            unreadable: None,
            folders: 1,
            below: vec![],
        };
        let below = |owner, group, mode| {
            let inside = owned(owner, group, mode).owner.unwrap();
            Folder { below: vec![(inside, "/m/web.yaml".into(), 3)], ..owned(0, 0, 0o755) }
        };
        for (folder, state) in [
            (owned(0, 0, 0o755), State::Ok),
            (owned(0, 0, 0o775), State::Ok),
            (owned(0, 100, 0o775), State::Warning),
            (owned(0, 0, 0o777), State::Failure),
            (owned(33, 33, 0o755), State::Warning),
            (Folder { unreadable: Some("EACCES".to_owned()), ..owned(0, 0, 0o700) }, State::Failure),
            (Folder { owner: None, ..owned(0, 0, 0o700) }, State::Failure),
            (below(0, 0, 0o644), State::Ok),
            (below(0, 0, 0o666), State::Failure),
            (below(0, 100, 0o664), State::Warning),
            (below(33, 33, 0o644), State::Warning),
        ] {
            let finding = folders(&[("/m".into(), folder.clone())], 0);
            assert_eq!(finding.state, state, "{folder:?}");
        }
        let told = folders(&[("/m".into(), below(0, 0, 0o666))], 0).found;
        assert!(told.contains("/m/web.yaml and 2 more (0666)"), "{told}");
        assert_eq!(folders(&[], 0).state, State::Skipped);
    }

    #[test]
    fn sources_and_manifests_are_told_with_what_to_do() {
        let unsynced = [(SourceName("fleet".to_owned()), "FetchFailed: no route".to_owned())];
        assert!(sources(&unsynced, true).mend.unwrap().contains("stead sources fleet"));
        assert_eq!(sources(&[], false).state, State::Skipped);
        let broken = Manifests { problems: vec!["web.yaml:1:1: no".to_owned()], ..Manifests::default() };
        assert!(manifests(Some(&broken)).mend.unwrap().contains("stead validate"));
        let hidden = Manifests { incomplete: vec!["manifests: gone".to_owned()], ..Manifests::default() };
        assert_eq!(manifests(Some(&hidden)).state, State::Failure);
    }

    #[test]
    fn the_stead_that_runs_is_to_answer_and_to_be_the_same() {
        let answers = |version: &str| Daemon::Answers { version: version.to_owned(), pid: 7, open_files: None };
        assert_eq!(daemon(&answers("0.1.0"), "0.1.0").state, State::Ok);
        assert!(daemon(&answers("0.0.9"), "0.1.0").found.contains("pid 7, is of version 0.0.9"));
        assert_eq!(daemon(&Daemon::Fails("no answer".to_owned()), "0.1.0").state, State::Failure);
        assert_eq!(daemon(&Daemon::None { locked: true }, "0.1.0").state, State::Warning);
        assert_eq!(daemon(&Daemon::None { locked: false }, "0.1.0").state, State::Skipped);
        assert_eq!(daemon(&Daemon::NotAsked, "0.1.0").state, State::Skipped);
    }
}
