//! Text to a tree in which every key and value knows its line and column.
//!
//! Budgets bound what a hostile file costs: its size, nodes, depth and aliases (serde-saphyr's defaults allow some 130 ms a
//! document; these allow about 10).

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value as Json};
use serde_yaml::Spanned;

/// Line and column, from 1.
pub type Place = (u64, u64);

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Node {
    /// What stands there.
    pub value: Value,
    /// Where.
    pub place: Place,
}

/// What stands at a place.
#[derive(Debug, Clone)]
pub enum Value {
    /// Nothing, `null` or `~`.
    Null,
    /// `true` or `false`, and no other spelling.
    Bool(bool),
    /// A number.
    Number(Number),
    /// Any other scalar, and all that is quoted.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in its order; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its text.
    pub text: String,
    /// Where.
    pub place: Place,
}

/// Why a document is no tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// What is wrong.
    pub message: String,
    /// Where, if it can be told.
    pub place: Option<Place>,
}

impl Node {
    /// The value of a key, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The node at the end of a path of keys, or the last one on the way that exists.
    pub fn nearest(&self, path: &[&str]) -> &Node {
        let mut node = self;
        for key in path {
            let next = match (&node.value, key.parse::<usize>()) {
                (Value::List(items), Ok(index)) => items.get(index),
                _ => node.get(key),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    /// What it is, for people.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("{value}, a boolean"),
            Value::Number(number) => format!("the number {number}"),
            Value::Text(text) => format!("the text {}", quoted(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }

    /// The same without places.
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(number) => Json::Number(number.clone()),
            Value::Text(text) => Json::String(text.clone()),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|(key, node)| (key.text.clone(), node.to_json())).collect())
            }
        }
    }

    fn shift(&mut self, lines: u64) {
        self.place.0 += lines;
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(entries) => {
                for (key, node) in entries {
                    key.place.0 += lines;
                    node.shift(lines);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
        }
    }
}

/// One document of a file: its first line, and its tree or what is wrong with it. Documents that are empty are left out.
#[derive(Debug)]
pub struct Document {
    /// Its first line, from 1.
    pub line: u64,
    /// Its tree.
    pub tree: Result<Node, SyntaxError>,
}

/// Every document of a file. An error in one spoils no other.
pub fn documents(text: &str) -> Vec<Document> {
    split(text).into_iter().filter_map(|(line, text)| parse(line, text)).collect()
}

/// The largest number up to which doubles count one by one (IEEE 754).
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
/// The most characters of somebody's text that are shown in a message about it.
const SHOWN: usize = 80;

/// A text as a message shows it: one line, and not without end.
pub fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

/// The same between quotes.
pub fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(SHOWN).collect::<String>())
}

/// Splits at the markers between documents: `---` at the very start of a line, where no scalar can contain it (YAML 1.2,
/// section 9.1.2).
fn split(text: &str) -> Vec<(u64, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (line_number, line) in (1..).zip(text.split_inclusive('\n')) {
        let bare = line.trim_end();
        let is_marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_marker && offset > 0 {
            parts.push((start_line, &text[start..offset]));
            start = offset;
            start_line = line_number;
        }
        if bare == "..." {
            parts.push((start_line, &text[start..offset]));
            start = offset + line.len();
            start_line = line_number + 1;
        }
        offset += line.len();
    }
    parts.push((start_line, &text[start..]));
    parts
}

fn parse(line: u64, text: &str) -> Option<Document> {
    let options = serde_yaml::options! {
        strict_booleans: true,
        with_snippet: false,
        emit_comments: false,
        budget: serde_yaml::budget! {
            max_depth: 32,
            max_nodes: 20_000,
            max_events: 60_000,
            max_aliases: 100,
            max_anchors: 100,
            max_documents: 2,
        },
        alias_limits: serde_yaml::alias_limits! { max_total_replayed_events: 10_000 },
    };
    match serde_yaml::from_str_with_options::<Option<Node>>(text, options) {
        Ok(None) => None,
        Ok(Some(mut node)) => {
            node.shift(line - 1);
            Some(Document { line: first_line(line, text), tree: Ok(node) })
        }
        Err(error) => {
            let place = error.location().filter(|at| at.line() > 0).map(|at| (at.line() + line - 1, at.column()));
            let message = one_line(&error.without_snippet().to_string());
            Some(Document { line: first_line(line, text), tree: Err(SyntaxError { message, place }) })
        }
    }
}

/// The line on which a document's content begins, after its marker, comments and blank lines.
fn first_line(line: u64, text: &str) -> u64 {
    let is_content = |text: &&str| !text.is_empty() && !text.starts_with('#') && *text != "---";
    let blank = text.lines().map(str::trim).take_while(|text| !is_content(text)).count();
    line + u64::try_from(blank).unwrap_or(0)
}

/// The parser's message without the place at its end, which is shown in another way.
fn one_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.split(" at line ").next().unwrap_or(line);
    let line = line.strip_prefix("error: ").unwrap_or(line);
    // It may name a key or an anchor, which may be long.
    line.chars().take(4 * SHOWN).collect()
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let place = (spanned.referenced.line(), spanned.referenced.column());
        Ok(Self { value: spanned.value, place })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar, a list or a mapping")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // JSON Schema, and so an editor, calls 2.0 a whole number. Beyond these no double is known to be one.
        if value.fract() == 0.0 && value.abs() < WHOLE_MAX {
            #[expect(clippy::cast_possible_truncation, reason = "it is whole, and far from the ends of an i64")]
            return Ok(Value::Number((value as i64).into()));
        }
        Ok(Number::from_f64(value).map_or_else(|| Value::Text(value.to_string()), Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some((key, node)) = entries.next_entry::<Spanned<String>, Node>()? {
            let place = (key.referenced.line(), key.referenced.column());
            map.push((Key { text: key.value, place }, node));
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_and_value_knows_its_place_in_the_whole_file() {
        let text = "# first\na: 1\n---\nb:\n  - x\n  - c: yes\n";
        let documents = documents(text);
        assert_eq!(documents.iter().map(|document| document.line).collect::<Vec<_>>(), [2, 4]);
        let tree = documents[1].tree.as_ref().unwrap();
        let Value::Map(entries) = &tree.value else { panic!() };
        assert_eq!(entries[0].0.place, (4, 1));
        assert_eq!(tree.nearest(&["b", "1", "c"]).place, (6, 8));
        assert!(matches!(&tree.nearest(&["b", "1", "c"]).value, Value::Text(text) if text == "yes"));
    }

    #[test]
    fn an_error_in_one_document_spoils_no_other() {
        let documents = documents("a: [1\n---\nb: 2\n---\nc: {\n---\nd: 3\n");
        let sound: Vec<bool> = documents.iter().map(|document| document.tree.is_ok()).collect();
        assert_eq!(sound, [false, true, false, true]);
    }

    #[test]
    fn empty_documents_are_none() {
        assert!(documents("").is_empty());
        assert!(documents("# only a comment\n---\n\n---\n").is_empty());
    }

    #[test]
    fn bombs_are_refused_in_little_time() {
        let bomb = (1..9).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, level| {
            let alias = format!("*a{}", level - 1);
            format!("{text}a{level}: &a{level} [{}]\n", vec![alias; 9].join(","))
        });
        for text in [bomb, "[".repeat(200_000), "{a: ".repeat(50_000), "- ".repeat(100_000)] {
            let start = std::time::Instant::now();
            let documents = documents(&text);
            assert!(documents[0].tree.is_err());
            assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
        }
    }

    #[test]
    fn a_duplicate_key_is_an_error_with_its_place() {
        let documents = documents("a: 1\nb: 2\na: 3\n");
        let error = documents[0].tree.as_ref().unwrap_err();
        assert_eq!(error.place, Some((3, 1)), "{error:?}");
        assert!(error.message.contains('a'), "{error:?}");
    }
}
