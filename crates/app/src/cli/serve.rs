//! `quittance serve`: the program as it runs for good, and its orderly end.
//!
//! Guarantees: a configuration that cannot work ends with 78 before anything runs; a store that failed ends the process;
//! SIGINT and SIGTERM let what is under way finish within the grace and burn no attempt.

use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::output::Output;
use super::{Failure, environment};
use crate::api::{ServeError, Shell, serve};
use crate::compose::{App, ComposeError, Ports};
use crate::config::{self, Config, Loaded};
use crate::telemetry::start_log;

impl From<ComposeError> for Failure {
    fn from(error: ComposeError) -> Self {
        match error {
            ComposeError::Config(lines) => Self::config(lines.join("\n")),
            other => Self::new(other.to_string()),
        }
    }
}

pub(super) async fn run(file: Option<&Path>, output: Output) -> Result<(), Failure> {
    let Loaded { mut config, warnings, .. } = config::load(file, &environment())?;
    start_log(&config.log).map_err(|error| Failure::new(error.to_string()))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let listener = bind(&mut config).await?;
    let ports = Ports::system(&config)?;
    let app = App::start(config, ports).await?;
    let address = app.config.server.listen;
    let said =
        serde_json::json!({ "listening": format!("http://{address}"), "version": env!("CARGO_PKG_VERSION") });
    output.result(&said, || format!("Quittance listens on http://{address}"))?;
    tracing::info!(%address, store = %app.config.store.path.display(), "serving");
    until_told_to_stop(app, listener).await
}

/// Takes the address before anything else starts; port 0 becomes the port that was given.
async fn bind(config: &mut Config) -> Result<TcpListener, Failure> {
    let wanted = config.server.listen;
    let refused = |error| Failure::new(ServeError { address: wanted, error }.to_string());
    let listener = TcpListener::bind(wanted).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    if config.server.public_url == format!("http://{wanted}") {
        config.server.public_url = format!("http://{address}");
    }
    config.server.listen = address;
    Ok(listener)
}

async fn until_told_to_stop(app: Arc<App>, listener: TcpListener) -> Result<(), Failure> {
    let (tell, mut told) = watch::channel(false);
    let stop = async move {
        // That the sender is gone means the same.
        let _ = told.wait_for(|stop| *stop).await;
    };
    let working = async {
        let failure = tokio::select! {
            name = told_to_stop() => {
                tracing::info!(signal = name, "stopping");
                None
            }
            error = app.store.failed() => {
                tracing::error!(%error, "the store failed: the process ends");
                Some(Failure::new(error.to_string()))
            }
        };
        tell.send_replace(true);
        app.stop().await;
        failure
    };
    let ((), failure) = tokio::join!(serve(Shell::new(Arc::clone(&app)), listener, stop), working);
    tracing::info!("stopped");
    failure.map_or(Ok(()), Err)
}

/// Ends with the name of the signal that asks the process to stop.
async fn told_to_stop() -> &'static str {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::warn!("signals cannot be heard: the process can only be killed");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}
