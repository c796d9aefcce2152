//! Which host a VM is for: one repository may declare the VMs of many.
//!
//! Selectors are those of Kubernetes (labels of a host in place of a node's). Where a source lists its hosts by documents of
//! kind `Host`, every host comes to the same verdict about every VM, from the documents alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::structure;
use super::yaml::{Place, shown};

/// Labels of a host.
pub type Labels = BTreeMap<String, String>;

/// Labels below this are stead's to give.
pub const OWN_PREFIX: &str = "stead.dev/";
/// The label that has a host's name.
pub const HOSTNAME_LABEL: &str = "stead.dev/hostname";
/// The label that has its machine id (machine-id(5)).
pub const MACHINE_ID_LABEL: &str = "stead.dev/machine-id";
/// The label that has its CPUs' architecture, as uname(2) calls it.
pub const ARCH_LABEL: &str = "stead.dev/arch";
/// Every label that stead gives.
pub const OWN_LABELS: [&str; 3] = [HOSTNAME_LABEL, MACHINE_ID_LABEL, ARCH_LABEL];

/// What is wrong with a label's key where those of stead's own that are `allowed` may stand, and no other.
pub fn flaw_of_key(key: &str, allowed: &[&str]) -> Option<(String, Option<String>)> {
    if key.is_empty() {
        return Some(("a label has a name".to_owned(), None));
    }
    if !key.starts_with(OWN_PREFIX) || allowed.contains(&key) {
        return None;
    }
    let near = structure::nearest(key, allowed.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    let message = if OWN_LABELS.contains(&key) {
        format!("{key} is for stead to tell")
    } else {
        format!("stead knows no label {}", shown(key))
    };
    Some((message, near))
}

/// What is wrong with a host's name, if anything.
pub fn flaw_of_name(name: &str) -> Option<&'static str> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_name = (1..=253).contains(&name.len()) && name.chars().all(is_fine) && !name.starts_with(['-', '.']);
    (!is_name).then_some("a host's name is made of letters, digits, `-`, `.` and `_`, 253 at most")
}

/// This host, as selectors see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostIdentity {
    /// Its name.
    pub name: String,
    /// Its labels: those of the configuration, and stead's own.
    pub labels: Labels,
    /// Whether its user gave it its name, in the configuration.
    pub is_configured: bool,
    /// Why it cannot be told whether that is its name, if so.
    pub unclear: Option<String>,
}

impl HostIdentity {
    /// A host of this name with these labels of its user's, its machine id and its architecture.
    pub fn new(name: String, labels: Labels, machine_id: Option<String>, arch: String) -> Self {
        let own = [(HOSTNAME_LABEL, Some(name.clone())), (MACHINE_ID_LABEL, machine_id), (ARCH_LABEL, Some(arch))];
        let own = own.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let labels = labels.into_iter().chain(own).collect();
        Self { name, labels, is_configured: false, unclear: None }
    }
}

/// Which hosts a VM is for: those that meet every requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSelector {
    /// What is asked for, by label.
    pub requirements: Vec<(String, Requirement)>,
    /// Whether more than one host may have it.
    pub allow_multiple: bool,
    /// Where it stands.
    pub place: Place,
}

/// What is asked of one label (<https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// It has one of these values.
    In(BTreeSet<String>),
    /// It has none of these values, or is not there.
    NotIn(BTreeSet<String>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Requirement {
    fn is_met_by(&self, value: Option<&String>) -> bool {
        match self {
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
        }
    }
}

impl HostSelector {
    fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|(key, requirement)| requirement.is_met_by(labels.get(key)))
    }

    /// Whether no two hosts can have it: names and machine ids are unique.
    fn names_one(&self) -> bool {
        let names = |(key, requirement): &(String, Requirement)| {
            let is_unique = [HOSTNAME_LABEL, MACHINE_ID_LABEL].contains(&key.as_str());
            is_unique && matches!(requirement, Requirement::In(values) if values.len() == 1)
        };
        self.requirements.iter().any(names)
    }
}

/// As one would say it.
impl fmt::Display for HostSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("any labels");
        }
        for (number, (key, requirement)) in self.requirements.iter().enumerate() {
            let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(", ");
            f.write_str(if number == 0 { "" } else { ", " })?;
            match requirement {
                Requirement::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values))?,
                Requirement::In(values) => write!(f, "{key} in ({})", list(values))?,
                Requirement::NotIn(values) => write!(f, "{key} notin ({})", list(values))?,
                Requirement::Exists => f.write_str(key)?,
                Requirement::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

/// A host that a source lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its labels: those of the document, and its name.
    pub labels: Labels,
}

impl Host {
    /// A host of this name with these labels.
    pub fn new(name: String, mut labels: Labels) -> Self {
        labels.insert(HOSTNAME_LABEL.to_owned(), name.clone());
        Self { name, labels }
    }
}

/// From where a source is looked at: which of its hosts this is.
#[derive(Debug, Clone, Default)]
pub struct Viewpoint {
    /// This host; `None`: nobody's view, to which every VM is here.
    here: Option<Arc<HostIdentity>>,
    /// The hosts that the source lists; none: it does not list them.
    listed: Vec<Host>,
    /// Why it cannot be told which those are.
    unclear: Option<String>,
}

/// Where a VM belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Belongs {
    /// On this host.
    Here,
    /// On another.
    Elsewhere,
    /// That cannot be told, and why; and what to do.
    Refused(String, &'static str),
}

impl Viewpoint {
    /// That of this host, or nobody's, before any document was read.
    pub fn new(here: Option<Arc<HostIdentity>>) -> Self {
        Self { here, ..Self::default() }
    }

    /// Takes in what the source lists now.
    pub fn list(&mut self, listed: Vec<Host>, unclear: Option<String>) {
        let mut names = BTreeSet::new();
        let twice = listed.iter().find(|host| !names.insert(host.name.as_str()));
        let twice = twice.map(|host| format!("host {} is listed twice", host.name));
        self.unclear = unclear.or(twice).or_else(|| self.is_another(&listed));
        self.listed = listed;
    }

    /// Why the host of this one's name in the list is another than this one, if so: it would take that one's VMs.
    fn is_another(&self, listed: &[Host]) -> Option<String> {
        let here = self.here.as_ref()?;
        let host = listed.iter().find(|host| host.name == here.name)?;
        let differs = |(key, value): &(&String, &String)| here.labels.get(*key).is_some_and(|own| own != *value);
        let (key, value) = host.labels.iter().find(differs)?;
        let own = here.labels.get(key)?;
        Some(format!("host {} is listed with {key}={value}, and this host of that name has {key}={own}", host.name))
    }

    /// Why it cannot be told whether this host is the one that it is called, if so.
    pub fn renamed(&self) -> Option<&String> {
        self.here.as_ref()?.unclear.as_ref()
    }

    /// Why it cannot be told which VMs are for this host, if so.
    pub fn gap(&self) -> Option<String> {
        let here = self.here.as_ref()?;
        if let Some(why) = &self.unclear {
            return Some(why.clone());
        }
        let is_known = self.listed.is_empty() || self.listed.iter().any(|host| host.name == here.name);
        (!is_known).then(|| {
            let name = &here.name;
            format!("this host, {name}, is none of those that it lists ({}); is that its name?", self.names())
        })
    }

    /// The same from each of the hosts that are listed.
    pub fn each(&self) -> Vec<Self> {
        let of = |host: &Host| {
            let (name, labels) = (host.name.clone(), host.labels.clone());
            let here = HostIdentity { name, labels, ..HostIdentity::default() };
            Self { here: Some(Arc::new(here)), ..self.clone() }
        };
        self.listed.iter().map(of).collect()
    }

    fn names(&self) -> String {
        self.listed.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Where a VM with this selector belongs.
    pub fn place(&self, selector: Option<&HostSelector>) -> Belongs {
        let is_asked = selector.is_some() || !self.listed.is_empty();
        if let Some(why) = self.unclear.as_ref().filter(|_| is_asked) {
            return Belongs::Refused(format!("the hosts cannot be told: {why}"), "mend what lists the hosts");
        }
        let allows_many = selector.is_some_and(|selector| selector.allow_multiple);
        if self.listed.is_empty() {
            return match selector {
                None => Belongs::Here,
                Some(selector) if !selector.names_one() && !allows_many => Belongs::Refused(
                    format!("more than one host may have {selector}, and each of them would run this VM"),
                    "ask for stead.dev/hostname, list the hosts in documents of kind Host, or set allowMultiple: true",
                ),
                Some(selector) => {
                    let is_here = self.here.as_ref().is_none_or(|here| selector.matches(&here.labels));
                    if is_here { Belongs::Here } else { Belongs::Elsewhere }
                }
            };
        }
        let matching = self.hosts_of(selector);
        let asked = || selector.map_or_else(|| "any labels".to_owned(), ToString::to_string);
        match matching.as_slice() {
            [] => Belongs::Refused(
                format!("no host has {}, so this VM would run nowhere; there are {}", asked(), self.names()),
                "give it to one of them, or delete it",
            ),
            [first, second, ..] if !allows_many => Belongs::Refused(
                format!("hosts {first} and {second} both have {}, and each of them would run this VM", asked()),
                "narrow its hostSelector, or set allowMultiple: true in it",
            ),
            _ => match &self.here {
                Some(here) if !matching.contains(&here.name.as_str()) => Belongs::Elsewhere,
                _ => Belongs::Here,
            },
        }
    }

    /// The listed hosts that a selector leads to.
    fn hosts_of(&self, selector: Option<&HostSelector>) -> Vec<&str> {
        let is_meant = |host: &&Host| selector.is_none_or(|selector| selector.matches(&host.labels));
        self.listed.iter().filter(is_meant).map(|host| host.name.as_str()).collect()
    }

    /// Whether a host is meant by two of these, so that two VMs of one name could not be declared with them. Without a list of
    /// hosts nobody knows, and they are taken to be.
    pub fn are_for_one_host<'a>(&self, selectors: impl Iterator<Item = Option<&'a HostSelector>>) -> bool {
        let mut meant = BTreeSet::new();
        self.listed.is_empty() || selectors.flat_map(|selector| self.hosts_of(selector)).any(|host| !meant.insert(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn selector(requirements: &[(&str, Requirement)]) -> HostSelector {
        let requirements = requirements.iter().map(|(key, requirement)| ((*key).to_owned(), requirement.clone()));
        HostSelector { requirements: requirements.collect(), allow_multiple: false, place: (1, 1) }
    }

    fn is(value: &str) -> Requirement {
        Requirement::In([value.to_owned()].into())
    }

    fn view(name: &str, own: &[(&str, &str)], listed: &[(&str, &[(&str, &str)])]) -> Viewpoint {
        let here = HostIdentity::new(name.into(), labels(own), Some(format!("id-of-{name}")), "x86_64".into());
        let mut view = Viewpoint::new(Some(Arc::new(here)));
        let hosts = listed.iter().map(|(name, pairs)| Host::new((*name).into(), labels(pairs)));
        view.list(hosts.collect(), None);
        view
    }

    #[test]
    fn requirements_are_met_as_in_kubernetes() {
        let values = |all: &[&str]| all.iter().map(|value| (*value).to_owned()).collect::<BTreeSet<_>>();
        let (a, b) = ("a".to_owned(), "b".to_owned());
        for (requirement, of_a, of_b, of_none) in [
            (Requirement::In(values(&["a", "c"])), true, false, false),
            (Requirement::NotIn(values(&["a", "c"])), false, true, true),
            (Requirement::Exists, true, true, false),
            (Requirement::DoesNotExist, false, false, true),
        ] {
            assert_eq!(requirement.is_met_by(Some(&a)), of_a, "{requirement:?}");
            assert_eq!(requirement.is_met_by(Some(&b)), of_b, "{requirement:?}");
            assert_eq!(requirement.is_met_by(None), of_none, "{requirement:?}");
        }
    }

    #[test]
    fn without_a_list_of_hosts_a_vm_that_two_could_claim_is_refused_unless_allowed() {
        let here = view("a1", &[("zone", "north")], &[]);
        assert_eq!(here.place(None), Belongs::Here);
        assert_eq!(here.place(Some(&selector(&[(HOSTNAME_LABEL, is("a1"))]))), Belongs::Here);
        assert_eq!(here.place(Some(&selector(&[(HOSTNAME_LABEL, is("a2"))]))), Belongs::Elsewhere);
        assert_eq!(here.place(Some(&selector(&[(MACHINE_ID_LABEL, is("id-of-a1"))]))), Belongs::Here);
        let north = selector(&[("zone", is("north"))]);
        let Belongs::Refused(why, _) = here.place(Some(&north)) else { panic!() };
        assert!(why.contains("zone=north"), "{why}");
        assert_eq!(here.place(Some(&HostSelector { allow_multiple: true, ..north })), Belongs::Here);
        let two = Requirement::In(["a1".to_owned(), "a2".to_owned()].into());
        assert!(matches!(here.place(Some(&selector(&[(HOSTNAME_LABEL, two)]))), Belongs::Refused(..)));
    }

    #[test]
    fn hosts_that_are_listed_come_to_the_same_verdict() {
        let hosts: &[(&str, &[(&str, &str)])] =
            &[("a1", &[("zone", "north")]), ("a2", &[("zone", "south")]), ("a3", &[("zone", "south")])];
        let north = selector(&[("zone", is("north"))]);
        let south = selector(&[("zone", is("south"))]);
        // What the configuration of a host says of itself makes no difference to what the others know.
        for (name, own, expected) in [
            ("a1", &[][..], Belongs::Here),
            ("a2", &[("rack", "1")][..], Belongs::Elsewhere),
            ("a3", &[][..], Belongs::Elsewhere),
        ] {
            let here = view(name, own, hosts);
            assert_eq!(here.gap(), None);
            assert_eq!(here.place(Some(&north)), expected);
            assert!(matches!(here.place(Some(&south)), Belongs::Refused(why, _) if why.contains("a2 and a3")));
            assert!(matches!(here.place(None), Belongs::Refused(..)), "it would run on each");
            let nowhere = selector(&[("zone", is("west"))]);
            assert!(matches!(here.place(Some(&nowhere)), Belongs::Refused(why, _) if why.contains("nowhere")));
            assert!(!here.are_for_one_host([Some(&north), Some(&selector(&[(HOSTNAME_LABEL, is("a2"))]))].into_iter()));
            assert!(here.are_for_one_host([Some(&north), None].into_iter()));
        }
        assert_eq!(view("a2", &[], hosts).place(Some(&HostSelector { allow_multiple: true, ..south })), Belongs::Here);
    }

    #[test]
    fn a_host_that_is_not_listed_or_is_another_than_the_listed_one_takes_nothing_for_absent() {
        let hosts: &[(&str, &[(&str, &str)])] = &[("a1", &[(MACHINE_ID_LABEL, "id-of-a1")]), ("a2", &[])];
        assert_eq!(view("a1", &[], hosts).gap(), None);
        assert!(view("a9", &[], hosts).gap().is_some_and(|why| why.contains("a9") && why.contains("a1, a2")));
        let twin: &[(&str, &[(&str, &str)])] = &[("a1", &[(MACHINE_ID_LABEL, "of another")])];
        let twin = view("a1", &[], twin);
        assert!(twin.gap().is_some_and(|why| why.contains("of another")));
        assert!(matches!(twin.place(None), Belongs::Refused(..)));
        let other_zone: &[(&str, &[(&str, &str)])] = &[("a1", &[("zone", "south")])];
        assert!(view("a1", &[("zone", "north")], other_zone).gap().is_some());
    }
}
