//! What the tour says, and whether it was true.
//!
//! A claim is a sentence with a figure, judged against something that the server cannot influence: the chain's own balances,
//! the merchant's inbox, the calls that the providers received. The story is told while it happens; the summary
//! at the end is the result, for people or as one JSON object.
//!
//! Deliberately absent: any claim that is true by construction.

use std::fmt::Display;
use std::time::Duration;

use serde::Serialize;

use super::naive::Comparison;

/// One sentence, and what came of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Claim {
    /// The chapter it belongs to.
    pub(super) chapter: String,
    /// The sentence.
    pub(super) claim: String,
    /// Whether it was true.
    pub(super) held: bool,
    /// What was measured.
    pub(super) figure: String,
    /// What should have been seen, when it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expected: Option<String>,
    /// What was seen instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seen: Option<String>,
}

/// Whether something was as it should be; if not, both sides of the difference.
#[derive(Debug, Clone)]
pub(super) struct Verdict(Result<(), (String, String)>);

impl Verdict {
    /// Both values are the same.
    pub(super) fn same<T: PartialEq + Display>(expected: T, seen: T) -> Self {
        if expected == seen { Self(Ok(())) } else { Self(Err((expected.to_string(), seen.to_string()))) }
    }

    /// Nothing is in a list of contradictions.
    pub(super) fn none(expected: &str, contradictions: &[String]) -> Self {
        if contradictions.is_empty() {
            Self(Ok(()))
        } else {
            let shown: Vec<&str> = contradictions.iter().map(String::as_str).take(5).collect();
            Self(Err((
                expected.to_owned(),
                format!("{} contradictions: {}", contradictions.len(), shown.join("; ")),
            )))
        }
    }

    /// A condition holds.
    pub(super) fn that(held: bool, expected: impl Display, seen: impl Display) -> Self {
        if held { Self(Ok(())) } else { Self(Err((expected.to_string(), seen.to_string()))) }
    }

    /// This, and then the other.
    pub(super) fn and(self, other: Self) -> Self {
        if self.0.is_ok() { other } else { self }
    }
}

/// Why the tour could not go on: something that had to happen did not, in time.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}; seen {seen}")]
pub(super) struct Stuck {
    /// What should have happened.
    pub(super) expected: String,
    /// What was seen last.
    pub(super) seen: String,
}

impl Stuck {
    pub(super) fn new(expected: impl Display, seen: impl Display) -> Self {
        Self { expected: expected.to_string(), seen: seen.to_string() }
    }
}

/// Where the lines of the story go.
pub(super) type Story = Box<dyn Fn(&str)>;

/// Tells the story and keeps the claims.
pub(super) struct Teller {
    story: Story,
    chapter: String,
    claims: Vec<Claim>,
}

impl Teller {
    /// Tells the story to `story`.
    pub(super) fn new(story: Story) -> Self {
        Self { story, chapter: String::new(), claims: Vec::new() }
    }

    /// A line of the story.
    pub(super) fn say(&self, line: impl Display) {
        (self.story)(&line.to_string());
    }

    /// Begins a chapter.
    pub(super) fn chapter(&mut self, title: &str) {
        title.clone_into(&mut self.chapter);
        self.say(format_args!("\n{title}"));
    }

    /// Judges a sentence.
    pub(super) fn claim(&mut self, claim: impl Display, figure: impl Display, verdict: Verdict) {
        let (expected, seen) = match verdict.0 {
            Ok(()) => (None, None),
            Err((expected, seen)) => (Some(expected), Some(seen)),
        };
        let claim = Claim {
            chapter: self.chapter.clone(),
            claim: claim.to_string(),
            held: expected.is_none(),
            figure: figure.to_string(),
            expected,
            seen,
        };
        self.say(format_args!("  {}", line_of(&claim)));
        for difference in differences(&claim) {
            self.say(format_args!("      {difference}"));
        }
        self.claims.push(claim);
    }

    /// The chapter came to an end before its time.
    pub(super) fn stuck(&mut self, stuck: &Stuck) {
        let verdict = Verdict::that(false, &stuck.expected, &stuck.seen);
        self.claim("the chapter came to its end", "it did not", verdict);
    }

    /// Every claim so far.
    pub(super) fn claims(&self) -> &[Claim] {
        &self.claims
    }
}

fn line_of(claim: &Claim) -> String {
    let mark = if claim.held { '✔' } else { '✘' };
    if claim.figure.is_empty() {
        format!("{mark} {}", claim.claim)
    } else {
        format!("{mark} {} ({})", claim.claim, claim.figure)
    }
}

fn differences(claim: &Claim) -> Vec<String> {
    let expected = claim.expected.iter().map(|text| format!("expected: {text}"));
    expected.chain(claim.seen.iter().map(|text| format!("seen:     {text}"))).collect()
}

/// The result of a tour.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether every claim held.
    pub(super) held: bool,
    /// How long the tour took, in milliseconds.
    pub(super) took_ms: u64,
    /// Every claim, in the order of the story.
    pub(super) claims: Vec<Claim>,
    /// What others would have made of the same run.
    pub(super) comparison: Vec<Comparison>,
    /// Where the database and the log are, while they are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<String>,
    /// Where the server answers, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<String>,
}

impl Report {
    /// The report of these claims. A tour without claims shows nothing, and does not hold.
    pub(super) fn new(claims: &[Claim], comparison: Vec<Comparison>, took: Duration) -> Self {
        Self {
            held: !claims.is_empty() && claims.iter().all(|claim| claim.held),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            claims: claims.to_vec(),
            comparison,
            data: None,
            url: None,
        }
    }

    /// How many claims did not hold; a tour without claims counts as one.
    pub(super) fn failed(&self) -> usize {
        let failed = self.claims.iter().filter(|claim| !claim.held).count();
        failed.max(usize::from(!self.held))
    }

    /// For people: every chapter in one line, and in full what did not hold. The rest was told before.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![String::new(), "Summary".to_owned()];
        for claims in self.claims.chunk_by(|one, next| one.chapter == next.chapter) {
            let held = claims.iter().filter(|claim| claim.held).count();
            let mark = if held == claims.len() { '✔' } else { '✘' };
            let chapter = claims.first().map_or("", |claim| claim.chapter.as_str());
            lines.push(format!("  {mark} {held} of {}  {chapter}", claims.len()));
            for claim in claims.iter().filter(|claim| !claim.held) {
                lines.push(format!("      {}", line_of(claim)));
                lines.extend(differences(claim).into_iter().map(|line| format!("          {line}")));
            }
        }
        let held = self.claims.iter().filter(|claim| claim.held).count();
        lines.push(format!(
            "{held} of {} claims held, in {}.{} s.",
            self.claims.len(),
            self.took_ms / 1000,
            self.took_ms % 1000 / 100
        ));
        if let (false, Some(data)) = (self.held, &self.data) {
            lines.push(format!("Database, evidence and the server's log (server.log) are kept in {data}"));
        }
        lines.join("\n")
    }
}

/// A span as people read it.
pub(super) fn millis(span: Duration) -> String {
    format!("{} ms", span.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn teller() -> Teller {
        Teller::new(Box::new(|_| {}))
    }

    #[test]
    fn one_false_claim_makes_the_report_false() {
        let mut teller = teller();
        teller.claim("two is two", 2, Verdict::same(2, 2));
        assert!(Report::new(teller.claims(), Vec::new(), Duration::ZERO).held);
        teller.claim("two is three", 2, Verdict::same(2, 2).and(Verdict::same(2, 3)));
        let report = Report::new(teller.claims(), Vec::new(), Duration::ZERO);
        assert!(!report.held);
        assert!(report.text().contains("✘ two is three"), "{}", report.text());
        assert!(report.text().contains("expected: 2") && report.text().contains("seen:     3"));
    }

    #[test]
    fn nothing_claimed_is_nothing_shown() {
        assert!(!Report::new(teller().claims(), Vec::new(), Duration::ZERO).held);
    }

    #[test]
    fn a_chapter_that_broke_off_is_a_claim_that_did_not_hold() {
        let mut teller = teller();
        teller.stuck(&Stuck::new("a settled invoice", "an open one"));
        assert!(!teller.claims()[0].held);
    }
}
