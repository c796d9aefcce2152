//! The pages of `docs/reference/`, made from the code: `--help` of every command, and the schema of every kind of document.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const MADE: &str = "<!-- From the code: UPDATE_GOLDEN=1 cargo test --test docs -->\n";

/// Holds them against the code, or writes them.
pub fn is_current(root: &Path) {
    super::prepared_text(&root.join("docs/reference/commands.md"), &commands());
    super::prepared_text(
        &root.join("docs/reference/manifest.md"),
        &documents(
            "The manifest",
            "What the files in a folder of manifests, or in a git repository, may hold. `stead schema` prints the same as a JSON \
             Schema, and `stead validate` says whether a file is sound.",
            &[stead::desired::manifest::json_schema(), stead::desired::manifest::host_schema()],
        ),
    );
    super::prepared_text(
        &root.join("docs/reference/configuration.md"),
        &documents(
            "The configuration",
            "`/etc/stead/config.yaml`, or what `--config` names. Without it, manifests come from `/etc/stead/manifests`. \
             `stead schema configuration` prints the same as a JSON Schema.",
            &[stead::config::configuration_schema()],
        ),
    );
}

fn help(command: &[&str]) -> String {
    let mut stead = Command::new(env!("CARGO_BIN_EXE_stead"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STEAD_")) {
        stead.env_remove(name);
    }
    let output = stead.args(command).arg("--help").env("COLUMNS", "100").output().unwrap();
    assert!(output.status.success(), "{command:?} --help");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn commands() -> String {
    let whole = help(&[]);
    let (before, rest) = whole.split_once("\nCommands:\n").expect("a list of commands");
    let (list, rest) = rest.split_once("\n\n").expect("an end of that list");
    let (_, global) = rest.split_once("Global options:\n").expect("options of all commands");
    let mut page = format!(
        "# Commands\n\n{MADE}\nEach command as its `--help` has it. The options that all commands have are at the end, once.\n\n\
         ```text\n{}\n\nCommands:\n{list}\n```\n",
        before.trim_end()
    );
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    for name in names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        let help = help(&[name]);
        let (own, after) = help.split_once("\nGlobal options:\n").expect("options of all commands");
        let examples = after.find("\nExamples:\n").map_or("", |at| &after[at..]);
        let _ = write!(page, "\n## stead {name}\n\n```text\n{}\n{}\n```\n", own.trim_end(), examples.trim_end());
    }
    let global = global.split("\nExamples:\n").next().unwrap_or_default();
    let _ = write!(page, "\n## Global options\n\n```text\n{}\n```\n", global.trim_end());
    page
}

fn documents(title: &str, about: &str, schemas: &[Value]) -> String {
    let mut page = format!("# {title}\n\n{MADE}\n{about}\n");
    for schema in schemas {
        let name = schema["title"].as_str().expect("a title");
        let _ = write!(page, "\n## {name}\n");
        fields(&mut page, schema);
        for (part, definition) in schema["$defs"].as_object().into_iter().flatten() {
            let _ = write!(page, "\n### {part} of {name}\n");
            fields(&mut page, definition);
        }
    }
    page
}

/// A table of an object's fields, or the values of what is none.
fn fields(page: &mut String, schema: &Value) {
    if let Some(about) = schema["description"].as_str() {
        let _ = write!(page, "\n{}\n", words(about));
    }
    if let Some(fields) = schema["properties"].as_object() {
        page.push_str("\n| field | type | default | what |\n|---|---|---|---|\n");
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, field) in fields {
            let default = match &field["default"] {
                _ if required.contains(&name.as_str()) => "required".to_owned(),
                Value::Null => "-".to_owned(),
                default => format!("`{default}`"),
            };
            let about = field["description"].as_str().map(words).unwrap_or_default();
            let _ = writeln!(page, "| `{name}` | {} | {default} | {about} |", kind(field));
        }
        return;
    }
    let values =
        schema["oneOf"].as_array().into_iter().flatten().chain(schema["enum"].as_array().into_iter().flatten());
    let mut values = values.peekable();
    if values.peek().is_none() {
        let _ = write!(page, "\n{}\n", kind(schema));
        return;
    }
    page.push('\n');
    for value in values {
        let name = value.as_str().or_else(|| value["const"].as_str());
        let about = value["description"].as_str().map(words).unwrap_or_default();
        let name = name.map_or_else(|| kind(value), |name| format!("`{name}`"));
        let _ = writeln!(page, "- {}", format!("{name}: {about}").trim_end_matches(": "));
    }
}

/// The type of a field in a few words.
fn kind(field: &Value) -> String {
    if let Some(part) = field["$ref"].as_str() {
        return part.rsplit('/').next().unwrap_or_default().to_owned();
    }
    if let Some(value) = field.get("const") {
        return format!("`{value}`");
    }
    if let Some(values) = field["enum"].as_array() {
        return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(choices) = field[choice].as_array() {
            return choices.iter().filter(|choice| choice["type"] != "null").map(kind).collect::<Vec<_>>().join(" or ");
        }
    }
    let mut types: Vec<String> = match &field["type"] {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => {
            many.iter().filter_map(Value::as_str).filter(|one| *one != "null").map(str::to_owned).collect()
        }
        _ => vec!["anything".to_owned()],
    };
    for one in &mut types {
        if one == "array" {
            *one = format!("list of {}", kind(&field["items"]));
        } else if one == "object" && field["additionalProperties"].is_object() {
            *one = format!("map of {}", kind(&field["additionalProperties"]));
        }
    }
    types.join(" or ")
}

/// A text in one line, safe in a table.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
