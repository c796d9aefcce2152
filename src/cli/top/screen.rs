//! The terminal, taken and always given back: at the end, by an error, a panic, or for a while to the shell.

use std::io::{self, Stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui_core::terminal::Terminal;
use ratatui_crossterm::CrosstermBackend;
use ratatui_crossterm::crossterm::cursor::{Hide, Show};
use ratatui_crossterm::crossterm::execute;
use ratatui_crossterm::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

use super::layout::Size;
use super::{draw, state::State};

use crate::host::linux::stop_until_continued;

/// Whether the terminal is ours now.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is ours.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    color: bool,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn take(color: bool) -> io::Result<Self> {
        give_back_before_any_panic();
        enter()?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()));
        // Else nobody would give it back.
        let terminal = terminal.inspect_err(|_| leave())?;
        Ok(Self { terminal, color })
    }

    pub(super) fn size(&self) -> io::Result<Size> {
        let size = self.terminal.size()?;
        Ok(Size { columns: size.width.into(), rows: size.height.into() })
    }

    pub(super) fn draw(&mut self, state: &State) -> io::Result<()> {
        self.terminal.draw(|frame| draw::draw(frame, state, self.color))?;
        Ok(())
    }

    /// Forgets what stands on the screen: the next frame is drawn as a whole. Not by `Terminal::clear`, which asks the terminal where
    /// the cursor is: the answer is typed, and would go to whoever reads keys.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        execute!(io::stdout(), Clear(ClearType::All))?;
        self.terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(())
    }

    /// Takes the terminal anew: whoever had it meanwhile may have set it otherwise.
    pub(super) fn retake(&mut self) -> io::Result<()> {
        leave();
        enter()?;
        self.clear()
    }

    /// Gives the terminal back and stops this process, as Ctrl-Z does; returns when it goes on.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        leave();
        stop_until_continued()?;
        enter()?;
        self.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn enter() -> io::Result<()> {
    TAKEN.store(true, Ordering::SeqCst);
    let entered = enable_raw_mode().and_then(|()| execute!(io::stdout(), EnterAlternateScreen, Hide));
    entered.inspect_err(|_| leave())
}

/// Where the terminal is gone there is nothing to give back, and nobody to tell.
fn leave() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
        let _ = disable_raw_mode();
    }
}

/// A panic ends stead in its hook, before anything is dropped: see `main`.
fn give_back_before_any_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let then = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            leave();
            then(panic);
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics with the terminal taken; only where the test below has it run in a terminal.
    #[test]
    #[ignore = "run by the test below"]
    fn panics_on_a_screen() {
        let _screen = Screen::take(false).unwrap();
        panic!("on purpose");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a terminal of its own for another run of this test")]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
        let itself = std::env::current_exe().unwrap();
        let test = "cli::top::screen::tests::panics_on_a_screen";
        let run = format!("{} --exact {test} --ignored --nocapture; stty -a", itself.display());
        let output = std::process::Command::new("script").args(["-q", "-e", "-c", &run, "/dev/null"]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        let at = |text: &str| told.find(text).unwrap_or_else(|| panic!("{text:?} is missing in {told:?}"));
        // The other screen is a private mode (DECSET 1049, xterm's control sequences); the message comes after it.
        assert!(at("\x1b[?1049h") < at("\x1b[?1049l") && at("\x1b[?1049l") < at("on purpose"), "{told:?}");
        for is_set in ["isig icanon ", " echo echoe ", "\nopost "] {
            at(is_set);
        }
    }
}
