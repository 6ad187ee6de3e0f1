//! The one file that prints. Results to stdout, as text for people or as one JSON value; words about them to stderr.
//!
//! A reader that went away (a closed pipe) is no failure of the command.

use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::Value;

use super::Failure;

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// As JSON.
    pub(crate) json: bool,
}

/// A table's columns: a heading and the path of its value in each item.
pub(crate) type Columns = &'static [(&'static str, &'static str)];

impl Output {
    /// Prints a text as it is.
    pub(crate) fn text(self, text: &str) -> Result<(), Failure> {
        write_stdout(text)
    }

    /// Prints bytes as they are, without a line's end of our own.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        forgive(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// Prints a result: as JSON, or in the words of `people`.
    pub(crate) fn result<T: Serialize>(
        self,
        value: &T,
        people: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.json {
            let text = serde_json::to_string(value).map_err(|error| Failure::new(error.to_string()))?;
            write_stdout(&text)
        } else {
            write_stdout(&people())
        }
    }

    /// Prints one object: its fields line by line.
    pub(crate) fn object(self, value: &Value) -> Result<(), Failure> {
        self.result(value, || fields(value))
    }

    /// Prints a page of a list as a table.
    pub(crate) fn table(self, page: &Value, columns: Columns) -> Result<(), Failure> {
        self.result(page, || {
            let empty = Vec::new();
            let rows = page.get("data").and_then(Value::as_array).unwrap_or(&empty);
            let mut text = table(rows, columns);
            if let Some(next) = page.get("next").and_then(Value::as_str) {
                text += &format!("\nmore: --after {next}");
            }
            text
        })
    }

    /// Says something about what is going on.
    pub(crate) fn note(self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Says why the command failed, and gives the exit code for it.
    pub(crate) fn fail(self, failure: &Failure) -> ExitCode {
        let _ = writeln!(io::stderr().lock(), "{}", failure.message);
        ExitCode::from(failure.code)
    }
}

fn write_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    forgive(writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush()))
}

fn forgive(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(error.to_string())),
        _ => Ok(()),
    }
}

fn fields(value: &Value) -> String {
    let Some(object) = value.as_object() else { return cell(value) };
    let width = object.keys().map(String::len).max().unwrap_or(0);
    let lines = object.iter().filter(|(_, value)| !value.is_null());
    lines.map(|(key, value)| format!("{key:width$}  {}", cell(value))).collect::<Vec<_>>().join("\n")
}

fn table(rows: &[Value], columns: Columns) -> String {
    if rows.is_empty() {
        return "nothing".to_owned();
    }
    let mut lines: Vec<Vec<String>> =
        vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
    lines.extend(rows.iter().map(|row| {
        columns.iter().map(|(_, path)| row.pointer(path).map_or_else(|| "-".to_owned(), cell)).collect()
    }));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let spell = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(spell).collect::<Vec<_>>().join("\n")
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_line_up_and_hide_control_characters() {
        let rows = [json!({"id": "a", "n": 1}), json!({"id": "bb\u{1b}[31m", "n": null})];
        assert_eq!(table(&rows, &[("ID", "/id"), ("N", "/n")]), "ID       N\na        1\nbb [31m  -");
        assert_eq!(table(&[], &[("ID", "/id")]), "nothing");
    }
}
