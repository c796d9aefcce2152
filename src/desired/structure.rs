//! The structural check: a document's tree held against the JSON Schema of its kind, with every error at once.
//!
//! Reads the small part of JSON Schema (draft 2020-12) that `manifest.rs` leads to; a keyword that it does not know is a
//! bug that a test finds, never a check left out in silence.

use std::sync::OnceLock;

use serde_json::{Map, Value as Json};

use super::yaml::{Key, Node, Place, Value, shown};

/// One thing that is wrong, before it is known in which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// What was found and what was expected.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Finding {
    /// A finding at the place of a node.
    pub fn at(node: &Node, message: impl Into<String>) -> Self {
        Self { place: node.place, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Everything in which `node` is not of `schema`.
pub fn check(node: &Node, schema: &Json) -> Vec<Finding> {
    let mut checker = Checker { root: schema, findings: Vec::new() };
    checker.check(node, schema, "the document");
    checker.findings
}

struct Checker<'a> {
    root: &'a Json,
    findings: Vec<Finding>,
}

impl<'a> Checker<'a> {
    fn resolve(&self, schema: &'a Json) -> &'a Json {
        match schema.get("$ref").and_then(Json::as_str) {
            Some(reference) => self.root.pointer(reference.trim_start_matches('#')).unwrap_or(schema),
            None => schema,
        }
    }

    fn check(&mut self, node: &Node, schema: &'a Json, what: &str) {
        let schema = self.resolve(schema);
        let optional = accepts_null(schema);
        if matches!(node.value, Value::Null) && optional {
            return;
        }
        if let Some(choices) = schema.get("anyOf").and_then(Json::as_array) {
            // `Option<T>` of a referred type: the choice that is not null.
            if let Some(choice) = choices.iter().find(|choice| choice.get("type") != Some(&Json::from("null"))) {
                self.check(node, choice, what);
            }
            return;
        }
        let allowed = constants(schema);
        if !allowed.is_empty() {
            self.check_constant(node, &allowed, what);
            return;
        }
        let types = types(schema);
        if !types.is_empty() && !types.iter().any(|kind| is_of_type(node, kind)) {
            self.wrong_type(node, &types, what);
            return;
        }
        match &node.value {
            Value::Map(entries) => self.check_map(node, entries, schema),
            Value::List(items) => {
                if let Some(of) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.check(item, of, &format!("{what}[{index}]"));
                    }
                }
            }
            Value::Number(number) => {
                let number = number.as_f64().unwrap_or(0.0);
                let bound = |key: &str| schema.get(key).and_then(Json::as_f64);
                let (low, high) = (bound("minimum"), bound("maximum"));
                if low.is_some_and(|low| number < low) || high.is_some_and(|high| number > high) {
                    let range = match (low, high) {
                        (Some(low), Some(high)) => format!("from {low} to {high}"),
                        (Some(low), None) => format!("of at least {low}"),
                        (None, Some(high)) => format!("of at most {high}"),
                        (None, None) => return,
                    };
                    self.findings.push(Finding::at(node, format!("{what} is {number}, expected a number {range}")));
                }
            }
            Value::Null | Value::Bool(_) | Value::Text(_) => {}
        }
    }

    fn check_map(&mut self, node: &Node, entries: &[(Key, Node)], schema: &'a Json) {
        let properties = schema.get("properties").and_then(Json::as_object).unwrap_or(no_properties());
        let additional = schema.get("additionalProperties");
        for (key, value) in entries {
            match (properties.get(&key.text), additional) {
                (Some(property), _) => self.check(value, property, &key.text),
                (None, Some(Json::Bool(false))) => self.unknown_field(key, properties),
                (None, Some(of)) if of.is_object() => self.check(value, of, &shown(&key.text)),
                (None, _) => {}
            }
        }
        for required in schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str) {
            if !entries.iter().any(|(key, _)| key.text == required) {
                let known = properties.get(required).map(|property| self.describe(property)).unwrap_or_default();
                self.findings.push(Finding::at(node, format!("the field `{required}` is missing")).hint(known));
            }
        }
    }

    fn unknown_field(&mut self, key: &Key, properties: &Map<String, Json>) {
        let hint = match nearest(&key.text, properties.keys().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known here: {}", properties.keys().cloned().collect::<Vec<_>>().join(", ")),
        };
        let message = format!("unknown field `{}`", shown(&key.text));
        self.findings.push(Finding { place: key.place, message, hint: Some(hint) });
    }

    fn check_constant(&mut self, node: &Node, allowed: &[&str], what: &str) {
        if matches!(&node.value, Value::Text(text) if allowed.contains(&text.as_str())) {
            return;
        }
        let expected = allowed.join(", ");
        let expected = if allowed.len() == 1 { expected } else { format!("one of {expected}") };
        let finding = Finding::at(node, format!("{what} is {}, expected {expected}", node.describe()));
        let near = match &node.value {
            Value::Text(text) => nearest(text, allowed.iter().copied()),
            _ => None,
        };
        self.findings.push(match near {
            Some(near) => finding.hint(format!("did you mean `{near}`?")),
            None => finding,
        });
    }

    fn wrong_type(&mut self, node: &Node, types: &[&str], what: &str) {
        let names: Vec<&str> = types.iter().filter(|kind| **kind != "null").map(|kind| name_of_type(kind)).collect();
        let finding = Finding::at(node, format!("{what} is {}, expected {}", node.describe(), names.join(" or ")));
        self.findings.push(match &node.value {
            Value::Bool(_) | Value::Number(_) if types.contains(&"string") => finding.hint("put it in quotes"),
            Value::Null => finding.hint("leave the field out, or give it a value"),
            _ => finding,
        });
    }

    fn describe(&self, schema: &'a Json) -> String {
        let description = schema.get("description").or_else(|| self.resolve(schema).get("description"));
        description.and_then(Json::as_str).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
    }
}

fn no_properties() -> &'static Map<String, Json> {
    static NONE: OnceLock<Map<String, Json>> = OnceLock::new();
    NONE.get_or_init(Map::new)
}

/// Of `known`, the name nearest to `found`, if it is near enough to be meant.
pub fn nearest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &&str| strsim::damerau_levenshtein(&found.to_lowercase(), &name.to_lowercase());
    // Long garbage is compared with nothing.
    if found.len() > 64 {
        return None;
    }
    known.min_by_key(distance).filter(|name| distance(name) <= 1 + name.len() / 4)
}

fn types(schema: &Json) -> Vec<&str> {
    match schema.get("type") {
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(many)) => many.iter().filter_map(Json::as_str).collect(),
        _ => Vec::new(),
    }
}

fn accepts_null(schema: &Json) -> bool {
    let any_of = schema.get("anyOf").and_then(Json::as_array);
    types(schema).contains(&"null") || any_of.is_some_and(|choices| choices.iter().any(accepts_null))
}

/// The texts that an enumeration allows.
fn constants(schema: &Json) -> Vec<&str> {
    if let Some(only) = schema.get("const").and_then(Json::as_str) {
        return vec![only];
    }
    let plain = schema.get("enum").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str);
    let described = schema.get("oneOf").and_then(Json::as_array).into_iter().flatten();
    plain.chain(described.flat_map(constants)).collect()
}

fn is_of_type(node: &Node, kind: &str) -> bool {
    match (&node.value, kind) {
        (Value::Number(number), "integer") => number.is_u64() || number.is_i64(),
        (Value::Null, "null")
        | (Value::Bool(_), "boolean")
        | (Value::Number(_), "number")
        | (Value::Text(_), "string")
        | (Value::List(_), "array")
        | (Value::Map(_), "object") => true,
        _ => false,
    }
}

fn name_of_type(kind: &str) -> &str {
    match kind {
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "a text",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "a mapping",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::manifest::json_schema;

    #[test]
    fn the_schema_uses_no_keyword_that_the_check_does_not_know() {
        const KNOWN: &[&str] = &[
            "$schema",
            "$id",
            "title",
            "description",
            "type",
            "properties",
            "required",
            "additionalProperties",
            "$defs",
            "$ref",
            "const",
            "oneOf",
            "enum",
            "anyOf",
            "items",
            "minimum",
            "maximum",
            "default",
            "format",
            // Of texts, and not checked here: `validate` does, and tests/schema.rs that it does.
            "pattern",
            "minLength",
            "maxLength",
        ];
        fn walk(schema: &Json, names: bool) {
            match schema {
                Json::Object(map) => {
                    for (key, value) in map {
                        assert!(names || KNOWN.contains(&key.as_str()), "{key}");
                        // Below these the keys are names of fields and types, and a default is no schema.
                        if key != "default" {
                            walk(value, !names && matches!(key.as_str(), "properties" | "$defs"));
                        }
                    }
                }
                Json::Array(items) => items.iter().for_each(|item| walk(item, false)),
                _ => {}
            }
        }
        walk(&json_schema(), false);
    }
}
