//! The short history of a VM: bounded, and told once with a count rather than over and over.

use jiff::Timestamp;

use super::{Event, EventType};

/// How many different events are kept of a VM.
pub const EVENTS_MAX: usize = 32;

/// Something that has just happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Whether it needs attention.
    pub kind: EventType,
    /// What, in one CamelCase word for programs.
    pub reason: String,
    /// What, for people.
    pub message: String,
}

#[cfg(test)]
impl NewEvent {
    /// Something that is as it should be.
    pub fn normal(reason: &str, message: impl Into<String>) -> Self {
        Self { kind: EventType::Normal, reason: reason.to_owned(), message: message.into() }
    }

    /// Something that needs attention.
    pub fn warning(reason: &str, message: impl Into<String>) -> Self {
        Self { kind: EventType::Warning, reason: reason.to_owned(), message: message.into() }
    }
}

/// The history with `new` added: what happened before is counted up and moves to the end, the oldest fall out.
pub(super) fn add(mut history: Vec<Event>, new: Vec<NewEvent>, now: Timestamp) -> Vec<Event> {
    for NewEvent { kind, reason, message } in new {
        let twin = history.iter().position(|e| e.kind == kind && e.reason == reason && e.message == message);
        let event = match twin {
            Some(at) => {
                let old = history.remove(at);
                Event { last_seen: now, count: old.count.saturating_add(1), ..old }
            }
            None => Event { kind, reason, message, first_seen: now, last_seen: now, count: 1 },
        };
        history.push(event);
    }
    let excess = history.len().saturating_sub(EVENTS_MAX);
    history.drain(..excess);
    history
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_same_event_again_is_counted_and_becomes_the_newest() {
        let died = || NewEvent::warning("Died", "exit status 1");
        let history = add(vec![], vec![died(), NewEvent::normal("Started", "")], at(1));
        let history = add(history, vec![died()], at(9));
        assert_eq!(history.len(), 2);
        let newest = history.last().unwrap();
        assert_eq!((newest.count, newest.first_seen, newest.last_seen), (2, at(1), at(9)));
    }

    #[test]
    fn a_history_is_bounded_and_forgets_the_oldest() {
        let many = (0..100).map(|n| NewEvent::normal("N", n.to_string())).collect();
        let history = add(vec![], many, at(1));
        assert_eq!(history.len(), EVENTS_MAX);
        assert_eq!(history[0].message, "68");
    }
}
