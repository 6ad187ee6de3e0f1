//! `quittance webhook listen`: follows the event log and forwards each event to a local URL, signed as a delivery is.
//!
//! Guarantees: the cursor is saved (written aside, synced, renamed) only after the receiver answered 2xx, so that nothing is
//! lost by a restart of either side; an event may come twice, with the same id. Events go out one by one, in order: a
//! receiver that fails holds up what is behind, visibly, and nothing is skipped.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use outside::http::Request;
use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use super::Failure;
use super::client::Remote;
use super::output::Output;
use super::remote::decode_secret;
use crate::features::webhook::sign;

/// How long to wait for more at the end of the log.
const POLL: Duration = Duration::from_secs(1);
/// The waits after failed forwards double from here to there.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Listen {
    /// Where to send each event.
    #[arg(long, value_name = "URL")]
    forward: Url,
    /// Where the place in the log is kept.
    #[arg(long, value_name = "FILE", default_value = "quittance-listen.cursor")]
    cursor_file: PathBuf,
    /// Without a kept place: begin with the first event there ever was, not with the next.
    #[arg(long)]
    from_start: bool,
    /// The secret that signs (`whsec_…`) [default: a fresh one, printed].
    #[arg(long, env = "QUITTANCE_WEBHOOK_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// End at the end of the log instead of waiting for more.
    #[arg(long)]
    once: bool,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Box<RawValue>>,
    next: Option<String>,
    cursor: String,
}

#[derive(Deserialize)]
struct Head {
    id: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Listen {
    pub(super) async fn run(self, server: &Remote, output: Output) -> Result<(), Failure> {
        let secret = self.secret(server, output)?;
        let mut cursor = self.begin(server).await?;
        output.note(&format!(
            "forwarding to {}; the place is kept in {}",
            self.forward,
            self.cursor_file.display()
        ));
        loop {
            // One at a time: the cursor of a page is the place after its last event.
            let page = read(server, cursor.as_deref()).await?;
            for event in &page.data {
                self.forward(server, event, &secret, output).await?;
            }
            if cursor.as_deref() != Some(&page.cursor) {
                save(&self.cursor_file, &page.cursor)?;
            }
            cursor = Some(page.cursor);
            if page.data.is_empty() && page.next.is_none() {
                if self.once {
                    return Ok(());
                }
                server.clock.sleep(POLL).await;
            }
        }
    }

    fn secret(&self, server: &Remote, output: Output) -> Result<Vec<u8>, Failure> {
        if let Some(text) = &self.secret {
            return decode_secret(text);
        }
        let fresh = server.chance.bytes::<32>().to_vec();
        output.note(&format!("signing with whsec_{}", STANDARD.encode(&fresh)));
        Ok(fresh)
    }

    /// The kept place; or the beginning; or the present end.
    async fn begin(&self, server: &Remote) -> Result<Option<String>, Failure> {
        match std::fs::read_to_string(&self.cursor_file) {
            Ok(text) => return Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::new(format!("{}: {error}", self.cursor_file.display()))),
        }
        if self.from_start {
            return Ok(None);
        }
        let end = read(server, Some("latest")).await?.cursor;
        save(&self.cursor_file, &end)?;
        Ok(Some(end))
    }

    /// Sends one event until it is taken.
    async fn forward(
        &self,
        server: &Remote,
        event: &RawValue,
        secret: &[u8],
        output: Output,
    ) -> Result<(), Failure> {
        let head: Head = serde_json::from_str(event.get())
            .map_err(|_| Failure::new("the server sent an event that cannot be read"))?;
        let mut wait = FIRST_WAIT;
        loop {
            let request = self.request(server, &head, event, secret)?;
            match server.http.send(request).await {
                Ok(response) if response.status.is_success() => {
                    return output.result(
                        &serde_json::json!({ "id": head.id, "type": head.kind, "status": response.status.as_u16() }),
                        || format!("{}  {}  {}", head.id, head.kind, response.status.as_u16()),
                    );
                }
                Ok(response) => output.note(&format!(
                    "{} {}: the receiver answered {}; again in {} s",
                    head.id,
                    head.kind,
                    response.status.as_u16(),
                    wait.as_secs()
                )),
                Err(error) => {
                    output.note(&format!("{} {}: {error}; again in {} s", head.id, head.kind, wait.as_secs()))
                }
            }
            server.clock.sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    fn request(
        &self,
        server: &Remote,
        head: &Head,
        event: &RawValue,
        secret: &[u8],
    ) -> Result<Request, Failure> {
        let body = event.get().as_bytes().to_vec();
        let timestamp = server.clock.now().as_seconds();
        let signature = sign(secret, &head.id, timestamp, &body);
        let mut request = Request::post(self.forward.clone(), Bytes::from(body));
        request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let headers = [
            ("webhook-id", head.id.clone()),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", signature),
            ("idempotency-key", format!("\"{}\"", head.id)),
        ];
        for (name, value) in headers {
            let value =
                HeaderValue::from_str(&value).map_err(|_| Failure::new("the event's id is not an id"))?;
            request.headers.insert(HeaderName::from_static(name), value);
        }
        Ok(request)
    }
}

/// One event at a time, so that the saved place is always just behind what was taken.
async fn read(server: &Remote, after: Option<&str>) -> Result<Page, Failure> {
    let query = [("after", after.map(str::to_owned)), ("limit", Some("1".to_owned()))];
    let bytes = server.get_bytes("/v1/events", &query).await?;
    serde_json::from_slice(&bytes).map_err(|_| Failure::new("the server's answer is not a page of events"))
}

/// Keeps the place so that a crash leaves the old one or the new one.
fn save(file: &Path, cursor: &str) -> Result<(), Failure> {
    let save = || -> std::io::Result<()> {
        let directory =
            file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut aside = tempfile::NamedTempFile::new_in(directory)?;
        writeln!(aside, "{cursor}")?;
        aside.as_file().sync_all()?;
        aside.persist(file).map_err(|error| error.error)?;
        std::fs::File::open(directory)?.sync_all()
    };
    save().map_err(|error| Failure::new(format!("{} cannot be kept: {error}", file.display())))
}
