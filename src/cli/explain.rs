//! `stead explain [REASON]`.

use super::table::align;
use super::{CliError, Context, Exit};
use crate::doctor::Check;
use crate::reasons::{About, Explanation, Reason};

/// Arguments of `stead explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead explain BaseChanged        what it means, and what to do
  stead explain                    every reason, in a line each

Reasons stand in the conditions and events of `stead describe`, in `stead plan -o json`, in `stead sources`, and below errors.")]
pub struct Args {
    /// The reason; all of them where none is named
    reason: Option<String>,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let text = match &args.reason {
        None => {
            let row = |reason: &Reason| vec![reason.to_string(), reason.explain().meaning.to_owned()];
            align(&Reason::ALL.iter().map(row).collect::<Vec<_>>()).join("\n") + "\n"
        }
        Some(word) => one(Reason::of_word(word).ok_or_else(|| unknown(word))?),
    };
    context.term.print(text)?;
    Ok(Exit::Converged)
}

fn one(reason: Reason) -> String {
    let Explanation { about, meaning, to_do } = reason.explain();
    let to_do = to_do.unwrap_or("Nothing.");
    format!("{reason}, {}\n\n{meaning}\n\nWhat to do: {to_do}\n", of(about))
}

fn of(about: About) -> &'static str {
    match about {
        About::Vm => "of a VM",
        About::Event => "of something that happened to a VM",
        About::Source => "of a git source",
        About::Host => "of something that was done for the host, or asked for",
        About::Command => "of a command that could not run",
    }
}

fn unknown(word: &str) -> CliError {
    let near = Reason::ALL.iter().map(|reason| (strsim::damerau_levenshtein(word, reason.word()), reason)).min();
    let hint = match near {
        Some((distance, reason)) if distance <= 1 + word.len() / 4 => format!("is it {reason}?"),
        _ => "`stead explain` shows them all".to_owned(),
    };
    CliError::Usage { message: format!("stead gives no reason {word:?}"), hint: Some(hint) }
}

/// docs/errors.md: every reason, exit status and check.
pub fn catalogue() -> String {
    let mut text = "\
# Reasons and errors

What stead says in one word, what that means and what to do. `stead explain WORD` says the same. This page is made from the code:
`UPDATE_GOLDEN=1 cargo test --test errors` writes it.

An error of a command has three lines: `error:` says what was tried, with what, and why it failed; `hint:` what to do; `reason:` the
word below. What is wrong with a manifest or the configuration is told with file, line and column, and what was expected there.
"
    .to_owned();
    let lasting = Reason::ALL.iter().filter(|reason| reason.is_lasting());
    let mut lasting: Vec<String> = lasting.map(|reason| format!("`{reason}`")).collect();
    lasting.sort();
    for (about, title, where_seen) in [
        (
            About::Vm,
            "Of VMs",
            "In the conditions of `stead describe` and `get -o json`, and in the holds of `stead plan -o json`.",
        ),
        (
            About::Event,
            "What happened",
            "In `stead events` and the events of `stead describe`, beside words of the table above.",
        ),
        (About::Host, "What happened beside that", "In `stead events`."),
        (About::Source, "Of git sources", "In the column STATUS of `stead sources`; what is in force stays in force."),
        (
            About::Command,
            "Of commands that could not run",
            &format!(
                "Below the error, on standard error. The exit status is 1; for `LockHeld` 75; and 78 where the same again would \
                 end the same way: for {}, and a flag or a variable that cannot be used.",
                lasting.join(", ")
            ),
        ),
    ] {
        text += &format!("\n## {title}\n\n{where_seen}\n\n| reason | what it means | what to do |\n|---|---|---|\n");
        for reason in Reason::ALL.iter().filter(|reason| reason.explain().about == about) {
            let Explanation { meaning, to_do, .. } = reason.explain();
            text += &format!("| `{reason}` | {meaning} | {} |\n", to_do.unwrap_or("").replace('|', "\\\\|"));
        }
    }
    text += "\n## Exit statuses\n\n| status | what it means |\n|---|---|\n";
    for exit in Exit::ALL {
        text += &format!("| {} | {} |\n", exit as u8, exit.meaning());
    }
    text += "\n## Checks of `stead doctor`\n\n| check | why it matters |\n|---|---|\n";
    for check in Check::ALL {
        text += &format!("| `{}` | {} |\n", check.name(), check.why());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_is_nearly_right_is_suggested() {
        let hint = |word: &str| unknown(word).hint().unwrap();
        assert_eq!(hint("BaseChangd"), "is it BaseChanged?");
        assert_eq!(hint("frobnicate"), "`stead explain` shows them all");
        assert!(one(Reason::Converged).ends_with("What to do: Nothing.\n"));
    }
}
