//! The figures of a benchmark: a small table for people, or one line of JSON for programs.
//!
//! Guarantees: a figure is printed with its unit and, where one was set, its target; a missed target is said, never
//! left out. Deliberately absent: statistics over runs; who compares runs does so from the JSON.

#![expect(
    clippy::float_arithmetic,
    clippy::cast_precision_loss,
    reason = "figures are for reading; no money is counted here"
)]

use std::time::Duration;

use serde_json::{Map, Value, json};

/// What a figure should reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Nothing was set.
    None,
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

#[derive(Debug)]
struct Figure {
    name: String,
    key: String,
    value: f64,
    unit: &'static str,
    target: Target,
}

/// A table of figures.
#[derive(Debug)]
pub struct Figures {
    title: &'static str,
    settings: Vec<(&'static str, String)>,
    figures: Vec<Figure>,
}

impl Figures {
    /// An empty table.
    #[must_use]
    pub const fn new(title: &'static str) -> Self {
        Self { title, settings: Vec::new(), figures: Vec::new() }
    }

    /// Says under which settings was measured.
    pub fn setting(&mut self, name: &'static str, value: impl ToString) {
        self.settings.push((name, value.to_string()));
    }

    /// Adds a figure.
    pub fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str, target: Target) {
        let name = name.into();
        let mut key: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
            .collect();
        if !unit.is_empty() {
            key.push('_');
            key.push_str(&unit.replace('/', "_per_").replace(' ', "_"));
        }
        self.figures.push(Figure { name, key, value, unit, target });
    }

    /// Adds how many a second.
    pub fn rate(&mut self, name: impl Into<String>, count: u64, took: Duration, target: Target) {
        self.add(name, count as f64 / took.as_secs_f64().max(1e-9), "/s", target);
    }

    /// Adds a span, in milliseconds.
    pub fn millis(&mut self, name: impl Into<String>, span: Duration, target: Target) {
        self.add(name, span.as_secs_f64() * 1000.0, "ms", target);
    }

    /// The table as text, or as one line of JSON.
    #[must_use]
    pub fn render(&self, as_json: bool) -> String {
        if as_json { self.to_json() } else { self.to_table() }
    }

    fn to_table(&self) -> String {
        let width = self.figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
        let mut lines = vec![self.title.to_owned()];
        for (name, value) in &self.settings {
            lines.push(format!("  ({name}: {value})"));
        }
        for figure in &self.figures {
            let Figure { name, value, unit, target, .. } = figure;
            let verdict = match *target {
                Target::None => String::new(),
                Target::AtLeast(least) => format!("   target ≥ {}: {}", spelt(least), said(*value >= least)),
                Target::AtMost(most) => format!("   target ≤ {}: {}", spelt(most), said(*value <= most)),
            };
            lines.push(format!("  {name:width$} {:>12} {unit}{verdict}", spelt(*value)));
        }
        lines.join("\n")
    }

    fn to_json(&self) -> String {
        let mut object = Map::new();
        object.insert("benchmark".to_owned(), json!(self.title));
        for (name, value) in &self.settings {
            object.insert(name.replace(' ', "_"), json!(value));
        }
        for figure in &self.figures {
            object.insert(figure.key.clone(), json!(figure.value));
        }
        Value::Object(object).to_string()
    }
}

fn said(reached: bool) -> &'static str {
    if reached { "reached" } else { "MISSED" }
}

fn spelt(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
