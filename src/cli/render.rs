//! A problem of a manifest as compilers show it: what, where, the line itself, and what to do.

use super::term::Stream;
use crate::desired::Problem;

/// Several lines.
pub(super) fn problem(problem: &Problem, is_warning: bool, color: bool) -> String {
    let out = Stream { is_terminal: color, color };
    let kind = if is_warning { out.careful("warning:") } else { out.bad("error:") };
    let mut text = format!("{kind} {}\n", out.strong(&problem.message));
    let file = problem.path.display();
    match (problem.place, &problem.snippet) {
        (Some((line, column)), snippet) => {
            text += &format!("  --> {file}:{line}:{column}\n");
            if let Some(snippet) = snippet {
                let gutter = " ".repeat(line.to_string().len());
                let before = usize::try_from(column).unwrap_or(1).saturating_sub(1);
                // Tabs stay tabs, so that the mark stands where the eye sees it.
                let indent: String = snippet.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                text += &format!("{gutter} |\n{line} | {snippet}\n{gutter} | {indent}{}\n", out.bad("^"));
            }
        }
        (None, _) => text += &format!("  --> {file}\n"),
    }
    if let Some(hint) = &problem.hint {
        text += &format!("  = {} {hint}\n", out.strong("help:"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stands_below_what_is_meant() {
        let problem = Problem {
            path: "web.yaml".into(),
            place: Some((12, 3)),
            message: "unknown field `memroy`".into(),
            hint: Some("did you mean `memory`?".into()),
            snippet: Some("  memroy: 1Gi".into()),
        };
        let expected = "error: unknown field `memroy`\n  --> web.yaml:12:3\n   |\n12 |   memroy: 1Gi\n   |   ^\n  = help: did you \
                        mean `memory`?\n";
        assert_eq!(super::problem(&problem, false, false), expected);
    }
}
