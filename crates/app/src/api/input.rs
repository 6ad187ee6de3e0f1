//! Reading requests: bodies, queries and ids, strictly. Every refusal names the field and says what is expected.
//!
//! Guarantees: unknown fields and repeated keys are refused; amounts are strings; a body is read to a limit of bytes
//! and of depth; text is kept as it came. Deliberately absent: defaults that depend on state: handlers know those.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use axum::body::{HttpBody, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::AppState;
use super::problem::Problem;

/// Values nested deeper than this are refused.
const MOST_DEPTH: usize = 32;

/// A JSON body, with the bytes it came as.
pub(super) struct Body<T> {
    pub(super) value: T,
    pub(super) bytes: Vec<u8>,
}

impl<T: DeserializeOwned> FromRequest<AppState> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Problem> {
        let json = is_json(request.headers());
        let limit = state.config.server.max_body_bytes;
        // What is announced to be too large is not waited for.
        let announced = usize::try_from(request.body().size_hint().lower()).unwrap_or(usize::MAX);
        if announced > limit {
            return Err(Problem::too_large(limit));
        }
        let bytes = match to_bytes(request.into_body(), limit).await {
            Ok(bytes) => Vec::from(bytes),
            Err(error) if is_too_large(&error) => return Err(Problem::too_large(limit)),
            Err(_) => return Err(Problem::not_json("the body broke off")),
        };
        if !json {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The body must be JSON",
                "send `Content-Type: application/json`",
            ));
        }
        check_shape(&bytes)?;
        Ok(Self { value: parse(&bytes)?, bytes })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn is_too_large(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let text = without_position(&error.inner().to_string());
        let field = match field_in(&text) {
            Some(name) if path == "." || path == "?" => name,
            Some(name) if !path.ends_with(&name) => format!("{path}.{name}"),
            _ => path,
        };
        Problem::field(field, text)
    })
}

/// Serde writes the position of an error behind it; the field says it better.
fn without_position(text: &str) -> String {
    text.split(" at line ").next().unwrap_or(text).to_owned()
}

/// The field that serde names in words, when the path does not hold it.
fn field_in(text: &str) -> Option<String> {
    let named = ["unknown field `", "missing field `", "duplicate field `"]
        .into_iter()
        .find_map(|start| text.strip_prefix(start))?;
    named.split('`').next().map(str::to_owned)
}

/// Whether bytes are JSON at all, not too deep, and without repeated keys.
fn check_shape(bytes: &[u8]) -> Result<(), Problem> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let shape = Shape { depth: 0 };
    let checked = shape.deserialize(&mut json).and_then(|()| json.end());
    checked.map_err(|error| {
        let text = without_position(&error.to_string());
        match text.split_once(REPEATED) {
            Some((_, key)) => Problem::field(key, "is given twice"),
            None if text.contains(TOO_DEEP) || text.contains("recursion limit") => {
                Problem::field("body", format!("is nested deeper than {MOST_DEPTH} levels"))
            }
            None => Problem::not_json(error.to_string()),
        }
    })
}

const REPEATED: &str = "repeated key ";
const TOO_DEEP: &str = "nested too deep";

/// Walks a JSON value and keeps nothing of it.
struct Shape {
    depth: usize,
}

impl Shape {
    fn deeper<E: de::Error>(&self) -> Result<Self, E> {
        if self.depth >= MOST_DEPTH { Err(E::custom(TOO_DEEP)) } else { Ok(Self { depth: self.depth + 1 }) }
    }
}

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.deeper()?)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            entries.next_value_seed(self.deeper()?)?;
            if !keys.insert(key.clone()) {
                return Err(de::Error::custom(format!("{REPEATED}{key}")));
            }
        }
        Ok(())
    }
}

/// A value that is spelt as a text, and never as a number.
#[derive(Debug, Clone)]
pub(super) struct Text(pub(super) String);

impl<'de> de::Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strictly;
        impl Visitor<'_> for Strictly {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Text, E> {
                Err(E::custom(AS_TEXT))
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Text, E> {
                Err(E::custom(AS_TEXT))
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Text, E> {
                Err(E::custom(AS_TEXT))
            }
        }
        deserializer.deserialize_any(Strictly)
    }
}

const AS_TEXT: &str =
    "must be a string such as \"2500000\", not a JSON number: JSON numbers lose digits above 2^53";

impl Text {
    /// The value that the text spells.
    pub(super) fn parse<T: FromStr<Err: fmt::Display>>(&self, field: &str) -> Result<T, Problem> {
        self.0.parse().map_err(|error: T::Err| Problem::field(field, error.to_string()))
    }
}

/// Checks a free text: not empty, not too long, no control characters.
pub(super) fn check_words(field: &str, text: &str, most_bytes: usize) -> Result<(), Problem> {
    if text.is_empty() || text.len() > most_bytes {
        return Err(Problem::field(field, format!("must have 1 to {most_bytes} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(Problem::field(field, "must not contain control characters"));
    }
    Ok(())
}

/// Checks free data: a JSON object, not too large. Depth and keys were checked with the whole body.
pub(super) fn check_data(field: &str, data: &RawValue, most_bytes: usize) -> Result<(), Problem> {
    if !data.get().starts_with('{') {
        return Err(Problem::field(field, "must be a JSON object"));
    }
    if data.get().len() > most_bytes {
        return Err(Problem::field(field, format!("may have {most_bytes} bytes of JSON at most")));
    }
    Ok(())
}

/// The parameters of a query, taken one by one; what is left at the end is unknown.
pub(super) struct Parameters(Vec<(String, String)>);

impl FromRequestParts<AppState> for Parameters {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = url::form_urlencoded::parse(query.as_bytes());
        Ok(Self(pairs.map(|(key, value)| (key.into_owned(), value.into_owned())).collect()))
    }
}

/// The most items of one page.
pub(super) const MOST_ITEMS: u32 = 250;
const USUAL_ITEMS: u32 = 50;

impl Parameters {
    /// A parameter's text. An empty one counts as absent.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut found = None;
        while let Some(index) = self.0.iter().position(|(key, _)| key == name) {
            if found.is_some() {
                return Err(Problem::field(name, "is given twice"));
            }
            found = Some(self.0.remove(index).1);
        }
        Ok(found.filter(|text| !text.is_empty()))
    }

    /// A parameter's value.
    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        let parse = |text: String| text.parse().map_err(|e: T::Err| Problem::field(name, e.to_string()));
        self.text(name)?.map(parse).transpose()
    }

    /// How many items are asked for.
    pub(super) fn limit(&mut self) -> Result<u32, Problem> {
        let expected = || Problem::field("limit", format!("must be a whole number from 1 to {MOST_ITEMS}"));
        match self.text("limit")? {
            None => Ok(USUAL_ITEMS),
            Some(text) => {
                let limit = text.parse().map_err(|_| expected())?;
                if (1..=MOST_ITEMS).contains(&limit) { Ok(limit) } else { Err(expected()) }
            }
        }
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(self) -> Result<(), Problem> {
        match self.0.first() {
            Some((name, _)) => Err(Problem::field(name.clone(), "is an unknown parameter")),
            None => Ok(()),
        }
    }
}

/// An id in the path. What does not parse as one names nothing, so it is not found.
pub(super) fn parse_id<T: FromStr>(what: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| Problem::missing(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Result<(), String> {
        check_shape(text.as_bytes()).map_err(|problem| serde_json::to_string(&problem).unwrap())
    }

    #[test]
    fn shapes_are_checked_before_meaning() {
        assert_eq!(shape(r#"{"a":[1,-2,3.5,null,true,"x",{"b":{}}]}"#), Ok(()));
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(shape(&nested(MOST_DEPTH)), Ok(()));
        for (bad, code, field) in [
            (nested(MOST_DEPTH + 1), "invalid_field", Some("body")),
            (nested(100_000), "invalid_field", Some("body")),
            (r#"{"a":1,"a":2}"#.to_owned(), "invalid_field", Some("a")),
            (r#"{"m":{"k":1,"\u006b":2}}"#.to_owned(), "invalid_field", Some("k")),
            (r#"{"a":1"#.to_owned(), "invalid_json", None),
            (r#"{"a":"\ud800"}"#.to_owned(), "invalid_json", None),
            ("{} {}".to_owned(), "invalid_json", None),
            (String::new(), "invalid_json", None),
            ("\u{feff}{}".to_owned(), "invalid_json", None),
            ("{\"a\":NaN}".to_owned(), "invalid_json", None),
        ] {
            let problem = check_shape(bad.as_bytes()).expect_err(&bad);
            let json = serde_json::to_value(&problem).unwrap();
            assert_eq!(json["code"], code, "{json}");
            assert_eq!(json.get("field").and_then(|field| field.as_str()), field, "{json}");
        }
        assert!(check_shape(b"{\"a\":\"\xff\"}").is_err(), "not UTF-8");
    }
}
