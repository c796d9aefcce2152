//! What the service manager is told: sd_notify(3). Nobody is told where there is none.

use std::time::Duration;

use sd_notify::NotifyState;

/// A service manager that wants to hear of us.
#[derive(Debug)]
pub struct ServiceManager {
    send: fn(&[NotifyState<'_>]) -> std::io::Result<()>,
    standing: Standing,
    /// How soon it takes us for hung if it hears nothing.
    watchdog: Option<Duration>,
    status: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nobody may rely on us yet.
    Starting,
    Ready,
    /// It goes on, and looks at everything again.
    Reloading,
}

impl ServiceManager {
    /// That of this process, by `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn of_this_process() -> Self {
        Self::new(sd_notify::notify, sd_notify::watchdog_enabled())
    }

    fn new(send: fn(&[NotifyState<'_>]) -> std::io::Result<()>, watchdog: Option<Duration>) -> Self {
        Self { send, standing: Standing::Starting, watchdog, status: String::new() }
    }

    /// How often [`ServiceManager::ping`] is to be called: twice in the time that it waits (sd_watchdog_enabled(3)). `None` if
    /// nobody waits, and then nothing has to wake up for it.
    pub fn ping_every(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 2)
    }

    /// We are alive. The start may take as long as it takes, if we are.
    pub fn ping(&self) {
        let Some(watchdog) = self.watchdog else { return };
        if self.standing == Standing::Starting {
            let micros = u32::try_from(watchdog.as_micros()).unwrap_or(u32::MAX);
            self.tell(&[NotifyState::Watchdog, NotifyState::ExtendTimeoutUsec(micros)]);
        } else {
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// Everything was looked at once; said once, and again after a reload.
    pub fn ready(&mut self) {
        if self.standing != Standing::Ready {
            self.standing = Standing::Ready;
            self.tell(&[NotifyState::Ready]);
        }
    }

    /// Everything is looked at again. [`ServiceManager::ready`] ends it.
    pub fn reloading(&mut self) {
        if self.standing == Standing::Ready {
            self.standing = Standing::Reloading;
            match NotifyState::monotonic_usec_now() {
                Ok(now) => self.tell(&[NotifyState::Reloading, now]),
                Err(_) => self.tell(&[NotifyState::Reloading]),
            }
        }
    }

    /// In one line, how things stand; said when it changes.
    pub fn status(&mut self, status: String) {
        if self.status != status {
            self.tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        // One that does not hear us does what it does about that. The loop sends this itself: the socket blocks only when PID 1 has
        // read none of some hundred messages, and then nothing on the host goes on.
        if let Err(error) = (self.send)(states) {
            tracing::debug!("telling the service manager: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    thread_local! {
        static SAID: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    #[expect(clippy::unnecessary_wraps, reason = "it stands for what may fail")]
    fn hear(states: &[NotifyState<'_>]) -> std::io::Result<()> {
        let names =
            states.iter().map(|state| state.to_string().split_inclusive('=').next().unwrap_or_default().to_owned());
        let line = names.zip(states).map(|(name, state)| match state {
            // A moment, which is another each time.
            NotifyState::MonotonicUsec(_) => name,
            _ => state.to_string(),
        });
        SAID.with_borrow_mut(|said| said.push(line.collect::<Vec<_>>().join(" ")));
        Ok(())
    }

    fn said() -> Vec<String> {
        SAID.with_borrow_mut(std::mem::take)
    }

    #[test]
    fn each_thing_is_said_once_and_a_reload_ends_by_being_ready() {
        let mut manager = ServiceManager::new(hear, None);
        assert_eq!(manager.ping_every(), None, "nobody waits, and nothing wakes up");
        manager.ping();
        manager.reloading();
        assert!(said().is_empty(), "who is not ready does not reload");
        for _ in 0..2 {
            manager.status("1 running".to_owned());
            manager.ready();
        }
        assert_eq!(said(), ["STATUS=1 running", "READY=1"]);
        manager.reloading();
        manager.reloading();
        manager.ready();
        manager.status("2 running".to_owned());
        manager.stopping();
        assert_eq!(said(), ["RELOADING=1 MONOTONIC_USEC=", "READY=1", "STATUS=2 running", "STOPPING=1"]);
    }

    #[test]
    fn a_start_that_takes_long_is_given_time_as_long_as_it_pings() {
        let mut manager = ServiceManager::new(hear, Some(Duration::from_secs(60)));
        assert_eq!(manager.ping_every(), Some(Duration::from_secs(30)));
        manager.ping();
        manager.ready();
        manager.ping();
        assert_eq!(said(), ["WATCHDOG=1 EXTEND_TIMEOUT_USEC=60000000", "READY=1", "WATCHDOG=1"]);
    }
}
