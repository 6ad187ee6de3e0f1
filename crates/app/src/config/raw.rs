//! The configuration as typed: a tree of values, each of which knows where it came from.
//!
//! The file is read first, then the environment is laid over it (`QUITTANCE__SECTION__KEY`, a number names a list's
//! element; `QUITTANCE_RPC_ENDPOINTS`). [`Section`] is how meaning is taken out of the tree: every key that is
//! asked for is known, whatever was not asked for is an unknown key, and each value or default that was used is
//! remembered with its origin. Nothing stops at the first problem.
//!
//! Deliberately not serde: it stops at the first error, and does not know where a value came from.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use toml::de::{DeTable, DeValue};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This line of the file.
    File(String, usize),
    /// This variable of the environment.
    Environment(String),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name, line) => write!(f, "{name}:{line}"),
            Self::Environment(name) => write!(f, "env {name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One thing that is wrong, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was said.
    pub origin: Origin,
    /// The key, as a path.
    pub key: String,
    /// What is wrong, and what to do. Holds no secret.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != Origin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// A value in use, for people who ask where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key, as a path.
    pub key: String,
    /// Its value; secrets are redacted.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(String),
    Flag(bool),
    /// A float or a date: never wanted, kept to be shown.
    Odd(String),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(text) | Self::Odd(text) => f.write_str(text),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::List(_) => f.write_str("a list"),
            Self::Table(_) => f.write_str("a table"),
        }
    }
}

/// The tree of `text`, with `environment` laid over it. Problems go to `problems`; the tree holds what was readable.
pub(super) fn read(
    name: &str,
    text: &str,
    environment: &[(String, String)],
    problems: &mut Vec<Problem>,
) -> Node {
    let mut root = read_file(name, text, problems);
    let mut ours: Vec<_> = environment.iter().filter(|(key, _)| key.starts_with("QUITTANCE__")).collect();
    ours.sort();
    for (variable, value) in ours {
        lay_over(&mut root, variable, value, problems);
    }
    if let Some((variable, value)) = environment.iter().find(|(key, _)| key == RPC_ENDPOINTS) {
        lay_endpoints_over(&mut root, variable, value, problems);
    }
    root
}

fn read_file(name: &str, text: &str, problems: &mut Vec<Problem>) -> Node {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        let what = format!("is not TOML: {}", error.message().replace('\n', " "));
        problems.push(Problem { origin: Origin::File(name.to_owned(), line), key: String::new(), what });
    }
    let origin = Origin::File(name.to_owned(), 1);
    Node { value: Value::Table(table_of(name, text, document.get_ref())), origin }
}

fn table_of(name: &str, text: &str, table: &DeTable<'_>) -> BTreeMap<String, Node> {
    let node = |key: &toml::Spanned<toml::de::DeString<'_>>, value: &toml::Spanned<DeValue<'_>>| {
        let line = line_of(text, key.span().start);
        (key.get_ref().to_string(), node_of(name, text, line, value))
    };
    table.iter().map(|(key, value)| node(key, value)).collect()
}

fn node_of(name: &str, text: &str, line: usize, value: &toml::Spanned<DeValue<'_>>) -> Node {
    let value_of = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => {
            Value::Integer(number.as_str().replace('_', "").trim_start_matches('+').to_owned())
        }
        DeValue::Integer(number) => Value::Odd(number.to_string()),
        DeValue::Float(number) => Value::Odd(number.to_string()),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Datetime(time) => Value::Odd(time.to_string()),
        DeValue::Array(list) => Value::List(
            list.iter().map(|item| node_of(name, text, line_of(text, item.span().start), item)).collect(),
        ),
        DeValue::Table(table) => Value::Table(table_of(name, text, table)),
    };
    Node { value: value_of(value.get_ref()), origin: Origin::File(name.to_owned(), line) }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// Puts one variable's value where its name says.
fn lay_over(root: &mut Node, variable: &str, value: &str, problems: &mut Vec<Problem>) {
    let origin = Origin::Environment(variable.to_owned());
    let mut refuse = |key: &str, what: &str| {
        problems.push(Problem { origin: origin.clone(), key: key.to_owned(), what: what.to_owned() });
    };
    let Some(path) = variable.strip_prefix("QUITTANCE__") else { return };
    let steps: Vec<String> = path.split("__").map(str::to_lowercase).collect();
    if steps.iter().any(String::is_empty) {
        return refuse("", "names no key: write QUITTANCE__SECTION__KEY");
    }
    let mut at = root;
    for (index, step) in steps.iter().enumerate() {
        let next_is_index = steps.get(index + 1).is_some_and(|next| next.parse::<usize>().is_ok());
        let fresh = || Node {
            value: if next_is_index { Value::List(Vec::new()) } else { Value::Table(BTreeMap::new()) },
            origin: origin.clone(),
        };
        at = match &mut at.value {
            Value::Table(table) => table.entry(step.clone()).or_insert_with(fresh),
            Value::List(list) => match step.parse::<usize>() {
                Ok(position) if position <= list.len() => {
                    if position == list.len() {
                        list.push(fresh());
                    }
                    &mut list[position]
                }
                _ => {
                    return refuse(
                        &steps[..index].join("."),
                        &format!("is a list of {}: name an element by its number, from 0", list.len()),
                    );
                }
            },
            _ => return refuse(&steps[..index].join("."), "is a plain value: nothing can be set inside it"),
        };
    }
    *at = Node { value: Value::Text(value.to_owned()), origin };
}

pub(super) const RPC_ENDPOINTS: &str = "QUITTANCE_RPC_ENDPOINTS";

/// `eip155:84532=https://a,https://b;eip155:1=https://c`: replaces the endpoints of the chains it names, and adds
/// chains that the file does not have.
fn lay_endpoints_over(root: &mut Node, variable: &str, value: &str, problems: &mut Vec<Problem>) {
    let origin = Origin::Environment(variable.to_owned());
    let text = |text: &str| Node { value: Value::Text(text.to_owned()), origin: origin.clone() };
    let Value::Table(table) = &mut root.value else { return };
    let chains = table
        .entry("chain".to_owned())
        .or_insert_with(|| Node { value: Value::List(Vec::new()), origin: origin.clone() });
    let Value::List(chains) = &mut chains.value else { return };
    for group in value.split(';').map(str::trim).filter(|group| !group.is_empty()) {
        let Some((chain, urls)) = group.split_once('=') else {
            problems.push(Problem {
                origin: origin.clone(),
                key: String::new(),
                what: "write CHAIN=URL,URL;CHAIN=URL, e.g. eip155:84532=https://a.example,https://b.example"
                    .to_owned(),
            });
            continue;
        };
        let endpoints = urls.split(',').map(str::trim).filter(|url| !url.is_empty()).map(text).collect();
        let endpoints = Node { value: Value::List(endpoints), origin: origin.clone() };
        let named = chains.iter_mut().find_map(|node| match &mut node.value {
            Value::Table(table) => match table.get("id") {
                Some(Node { value: Value::Text(id), .. }) if id == chain.trim() => Some(table),
                _ => None,
            },
            _ => None,
        });
        if let Some(table) = named {
            table.insert("rpc_endpoints".to_owned(), endpoints);
        } else {
            let table =
                [("id".to_owned(), text(chain.trim())), ("rpc_endpoints".to_owned(), endpoints)].into();
            chains.push(Node { value: Value::Table(table), origin: origin.clone() });
        }
    }
}

/// What reading a configuration leaves behind, whether it succeeds or not.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: RefCell<Vec<Problem>>,
    pub(super) warnings: RefCell<Vec<Problem>>,
    pub(super) settings: RefCell<Vec<Setting>>,
}

/// One table of the tree while its meaning is taken out.
pub(super) struct Section<'a> {
    path: String,
    table: Option<&'a BTreeMap<String, Node>>,
    pub(super) origin: Origin,
    asked: RefCell<BTreeSet<String>>,
    findings: &'a Findings,
}

impl<'a> Section<'a> {
    /// A section over a node; a node that is no table is a problem and reads as empty.
    pub(super) fn new(path: impl Into<String>, node: Option<&'a Node>, findings: &'a Findings) -> Self {
        let path = path.into();
        let mut section = Self {
            path,
            table: None,
            origin: node.map_or(Origin::Default, |node| node.origin.clone()),
            asked: RefCell::default(),
            findings,
        };
        match node.map(|node| &node.value) {
            Some(Value::Table(table)) => section.table = Some(table),
            Some(other) => section.refuse("", format!("is {other}, and should be a table of keys")),
            None => {}
        }
        section
    }

    /// The whole path of a key.
    pub(super) fn key(&self, key: &str) -> String {
        match (self.path.is_empty(), key.is_empty()) {
            (true, _) => key.to_owned(),
            (_, true) => self.path.clone(),
            _ => format!("{}.{key}", self.path),
        }
    }

    /// Where a key was set.
    pub(super) fn origin_of(&self, key: &str) -> Origin {
        self.table
            .and_then(|table| table.get(key))
            .map_or_else(|| self.origin.clone(), |node| node.origin.clone())
    }

    /// Notes a problem with a key.
    pub(super) fn refuse(&self, key: &str, what: impl Into<String>) {
        let problem = Problem { origin: self.origin_of(key), key: self.key(key), what: what.into() };
        self.findings.problems.borrow_mut().push(problem);
    }

    /// Notes something that is allowed and unwise.
    pub(super) fn warn(&self, key: &str, what: impl Into<String>) {
        let warning = Problem { origin: self.origin_of(key), key: self.key(key), what: what.into() };
        self.findings.warnings.borrow_mut().push(warning);
    }

    /// Remembers the value in use.
    pub(super) fn note(&self, key: &str, value: impl fmt::Display, set: bool) {
        let origin = if set { self.origin_of(key) } else { Origin::Default };
        let setting = Setting { key: self.key(key), value: value.to_string(), origin };
        self.findings.settings.borrow_mut().push(setting);
    }

    /// The node of a key, which from now on is a known key.
    pub(super) fn ask(&self, key: &str) -> Option<&'a Node> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.table.and_then(|table| table.get(key))
    }

    /// A text; numbers are not taken for one.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match &self.ask(key)?.value {
            Value::Text(text) => Some(text),
            other => {
                self.refuse(key, format!("is {other}, and should be a text in quotes"));
                None
            }
        }
    }

    /// A text that means a `T`. `expected` completes the sentence "… is no …".
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(key)?;
        let parsed = parse(text);
        if parsed.is_none() {
            self.refuse(key, format!("{text:?} is not valid: expected {expected}"));
        }
        parsed
    }

    /// A whole number within `range`. The environment's texts count as numbers.
    pub(super) fn integer(&self, key: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let node = self.ask(key)?;
        let number = match (&node.value, &node.origin) {
            (Value::Integer(text), _) | (Value::Text(text), Origin::Environment(_)) => {
                text.parse::<u64>().ok()
            }
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => Some(number),
            _ => {
                let (low, high) = (range.start(), range.end());
                self.refuse(
                    key,
                    format!("{} is not valid: expected a whole number from {low} to {high}", node.value),
                );
                None
            }
        }
    }

    /// A whole number, or its default; the value in use is remembered.
    pub(super) fn integer_or(&self, key: &str, range: std::ops::RangeInclusive<u64>, default: u64) -> u64 {
        let found = self.integer(key, range);
        let value = found.unwrap_or(default);
        self.note(key, value, found.is_some());
        value
    }

    /// A span in milliseconds, or its default.
    pub(super) fn millis_or(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
    ) -> std::time::Duration {
        std::time::Duration::from_millis(self.integer_or(key, range, default))
    }

    /// A flag, or its default.
    pub(super) fn flag_or(&self, key: &str, default: bool) -> bool {
        let found = self.ask(key).and_then(|node| match (&node.value, &node.origin) {
            (Value::Flag(flag), _) => Some(*flag),
            (Value::Text(text), Origin::Environment(_)) if text == "true" || text == "false" => {
                Some(text == "true")
            }
            (other, _) => {
                self.refuse(key, format!("{other} is not valid: expected true or false"));
                None
            }
        });
        let value = found.unwrap_or(default);
        self.note(key, value, found.is_some());
        value
    }

    /// The elements of a list; an absent key is an empty list. The environment separates elements by commas.
    pub(super) fn list(&self, key: &str) -> Vec<Node> {
        let Some(node) = self.ask(key) else { return Vec::new() };
        match (&node.value, &node.origin) {
            (Value::List(list), _) => list.clone(),
            (Value::Text(text), Origin::Environment(_)) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Node { value: Value::Text(item.to_owned()), origin: node.origin.clone() })
                .collect(),
            (other, _) => {
                self.refuse(key, format!("is {other}, and should be a list in [ ]"));
                Vec::new()
            }
        }
    }

    /// Every key that nobody asked for is unknown. Call it last.
    pub(super) fn finish(self) {
        let asked = self.asked.borrow();
        for key in self.table.into_iter().flat_map(BTreeMap::keys).filter(|key| !asked.contains(*key)) {
            let near = asked
                .iter()
                .map(|known| (strsim::damerau_levenshtein(known, key), known))
                .filter(|(distance, known)| *distance <= 2.max(known.len() / 3))
                .min();
            match near {
                Some((_, known)) => self.refuse(key, format!("is an unknown key: did you mean `{known}`?")),
                None => {
                    let known: Vec<&str> = asked.iter().map(String::as_str).collect();
                    self.refuse(
                        key,
                        format!("is an unknown key: remove it (known here: {})", known.join(", ")),
                    );
                }
            }
        }
    }
}
