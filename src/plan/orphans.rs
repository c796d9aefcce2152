//! Which kernel objects nothing accounts for any more, and which of them may be freed now.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::names::Owner;
use crate::observed::orphans::{Account, Survey, TaggedObject};
use crate::time::{Deadline, Now};

/// When each object was first seen that nothing accounts for, by [`TaggedObject::key`].
pub type FirstSeen = BTreeMap<String, Deadline>;

/// An object that nothing accounts for.
#[derive(Debug, Clone, PartialEq)]
pub struct Orphan {
    /// The object.
    pub object: TaggedObject,
    /// The VM it was made for, if that is known.
    pub vm: Option<String>,
    /// When it was first seen as such.
    pub since: Deadline,
    /// What is to be done with it.
    pub verdict: OrphanVerdict,
}

impl Orphan {
    /// Whether it is to be freed now.
    pub fn is_due(&self) -> bool {
        self.verdict == OrphanVerdict::Free
    }

    /// What it is, for people, with what is to become of it.
    pub fn line(&self, now: &Now) -> String {
        format!("{}: {}", self.described(now), self.verdict)
    }

    /// What it is, for people.
    pub fn described(&self, now: &Now) -> String {
        let whose = self.vm.as_ref().map_or_else(String::new, |vm| format!(" of VM {vm}"));
        let age = now.since(&self.since).unwrap_or_default().as_secs();
        format!("{} {}{whose}, seen for {age}s", self.object.kind.word(), self.object.name)
    }
}

/// What is to be done with an orphan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrphanVerdict {
    /// It is old enough, and nothing uses it.
    Free,
    /// It may be of something that is only just being made: not before this moment.
    Wait(Deadline),
    /// Something uses it, or it cannot be told: why.
    Held(String),
}

impl fmt::Display for OrphanVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("to be freed"),
            Self::Wait(_) => f.write_str("too young yet"),
            Self::Held(why) => write!(f, "held: {why}"),
        }
    }
}

/// The orphans among the objects of a survey, with since when they are. What is not among them any more is forgotten, and
/// would have to be seen anew: an object that was accounted for in between is as young as a new one.
pub fn judge(survey: &Survey, before: &FirstSeen, min_age: Duration, now: &Now) -> Vec<Orphan> {
    let orphan = |object: &TaggedObject| {
        let (vm, held) = match account(survey, object) {
            Standing::Accounted => return None,
            Standing::Orphan(vm) => (vm, object.in_use.clone()),
            Standing::Held(vm, why) => (vm, Some(why)),
        };
        let known = before.get(&object.key()).filter(|since| since.boot_id == now.boot_id);
        let since = known.cloned().unwrap_or_else(|| now.deadline(Duration::ZERO));
        let ripe = since.after(min_age);
        let verdict = match held {
            Some(why) => OrphanVerdict::Held(why),
            None if now.is_past(&ripe) => OrphanVerdict::Free,
            None => OrphanVerdict::Wait(ripe),
        };
        Some(Orphan { object: object.clone(), vm, since, verdict })
    };
    survey.objects.iter().filter_map(orphan).collect()
}

/// What is to be remembered of these orphans.
pub fn first_seen(orphans: &[Orphan]) -> FirstSeen {
    orphans.iter().map(|orphan| (orphan.object.key(), orphan.since.clone())).collect()
}

enum Standing {
    Accounted,
    Orphan(Option<String>),
    Held(Option<String>, String),
}

fn account(survey: &Survey, object: &TaggedObject) -> Standing {
    if survey.is_named(object) {
        return Standing::Accounted;
    }
    match &object.owner {
        None => Standing::Orphan(None),
        Some(Owner::Shared) => shared(survey),
        Some(Owner::Vm(uid)) => match survey.accounts.get(uid) {
            Some((name, Account::Unknown(why))) => Standing::Held(Some(name.to_string()), why.clone()),
            // Made for an earlier life of a VM that lives without it, or of one that is gone.
            Some((name, Account::Names(_) | Account::Nothing)) => Standing::Orphan(Some(name.to_string())),
            None => match survey.live.get(uid) {
                Some(pid) => Standing::Held(None, format!("a VMM that no state accounts for lives with it, pid {pid}")),
                None => Standing::Orphan(None),
            },
        },
    }
}

/// A loop over a base image that no record names: any VM whose record cannot be told may use it.
fn shared(survey: &Survey) -> Standing {
    let unknown = survey.accounts.values().find(|(_, account)| matches!(account, Account::Unknown(_)));
    match unknown {
        Some((name, _)) => Standing::Held(None, format!("VM {name} may use it: its record cannot be told")),
        None => Standing::Orphan(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{ShortUid, StateId, VmName};
    use crate::observed::orphans::ObjectKind;
    use crate::time::BootId;

    const MIN_AGE: Duration = Duration::from_secs(300);

    fn now(second: u64) -> Now {
        let boot_id = BootId("boot".into());
        Now { boot_id, boot_ms: second * 1000, wall: jiff::Timestamp::UNIX_EPOCH }
    }

    fn uid(name: &str) -> ShortUid {
        let name: VmName = name.parse().unwrap();
        StateId::derive("m", std::path::Path::new("/s")).uid(&name).short()
    }

    fn tap(owner: Option<Owner>) -> TaggedObject {
        TaggedObject { kind: ObjectKind::Tap, name: "st1".into(), tag: "tag".into(), owner, in_use: None }
    }

    fn survey(object: TaggedObject, account: Option<Account>) -> Survey {
        let accounts = account.map(|account| (uid("web"), ("web".parse().unwrap(), account)));
        Survey { objects: vec![object], accounts: accounts.into_iter().collect(), ..Survey::default() }
    }

    fn verdict(survey: &Survey) -> Option<OrphanVerdict> {
        let seen = FirstSeen::from([("tap tag".to_owned(), now(0).deadline(Duration::ZERO))]);
        judge(survey, &seen, MIN_AGE, &now(1000)).pop().map(|orphan| orphan.verdict)
    }

    #[test]
    fn what_a_record_names_is_no_orphan_and_what_it_does_not_name_is_one() {
        let web = || tap(Some(Owner::Vm(uid("web"))));
        assert_eq!(verdict(&survey(web(), Some(Account::Names(["tag".to_owned()].into())))), None);
        assert_eq!(
            verdict(&survey(web(), Some(Account::Names(["other".to_owned()].into())))),
            Some(OrphanVerdict::Free)
        );
        assert_eq!(verdict(&survey(web(), Some(Account::Nothing))), Some(OrphanVerdict::Free));
        assert_eq!(verdict(&survey(web(), None)), Some(OrphanVerdict::Free));
    }

    #[test]
    fn an_orphan_is_not_freed_before_its_age_and_ages_only_within_one_boot() {
        let survey = survey(tap(Some(Owner::Vm(uid("web")))), None);
        let first = judge(&survey, &FirstSeen::new(), MIN_AGE, &now(1000));
        let ripe = now(1300).deadline(Duration::ZERO);
        assert_eq!(first[0].verdict, OrphanVerdict::Wait(ripe));
        let seen = first_seen(&first);
        assert!(matches!(judge(&survey, &seen, MIN_AGE, &now(1299))[0].verdict, OrphanVerdict::Wait(_)));
        assert_eq!(judge(&survey, &seen, MIN_AGE, &now(1301))[0].verdict, OrphanVerdict::Free);
        let rebooted = Now { boot_id: BootId("other".into()), ..now(1301) };
        assert!(matches!(judge(&survey, &seen, MIN_AGE, &rebooted)[0].verdict, OrphanVerdict::Wait(_)));
    }

    #[test]
    fn an_unknown_record_or_a_live_vmm_holds_whatever_carries_its_tag() {
        let web = || tap(Some(Owner::Vm(uid("web"))));
        let held = |survey: &Survey| matches!(verdict(survey), Some(OrphanVerdict::Held(_)));
        assert!(held(&survey(web(), Some(Account::Unknown("torn".into())))));
        let mut unclaimed = survey(web(), None);
        unclaimed.live.insert(uid("web"), 4711);
        assert!(held(&unclaimed));
        let mut attached = survey(web(), None);
        attached.objects[0].in_use = Some("pid 4711 is attached to it".into());
        assert!(held(&attached));
    }

    #[test]
    fn a_shared_base_is_held_as_long_as_any_record_may_name_it() {
        let base = || tap(Some(Owner::Shared));
        assert_eq!(verdict(&survey(base(), Some(Account::Names(["tag".to_owned()].into())))), None);
        assert!(matches!(
            verdict(&survey(base(), Some(Account::Unknown("torn".into())))),
            Some(OrphanVerdict::Held(_))
        ));
        assert_eq!(verdict(&survey(base(), Some(Account::Nothing))), Some(OrphanVerdict::Free));
    }

    #[test]
    fn an_object_that_was_accounted_for_in_between_is_young_again() {
        let web = || tap(Some(Owner::Vm(uid("web"))));
        let seen = first_seen(&judge(&survey(web(), None), &FirstSeen::new(), MIN_AGE, &now(0)));
        assert_eq!(seen.len(), 1);
        let named = survey(web(), Some(Account::Names(["tag".to_owned()].into())));
        let seen = first_seen(&judge(&named, &seen, MIN_AGE, &now(400)));
        assert!(seen.is_empty());
        let again = judge(&survey(web(), None), &seen, MIN_AGE, &now(500));
        assert!(matches!(again[0].verdict, OrphanVerdict::Wait(_)));
    }
}
