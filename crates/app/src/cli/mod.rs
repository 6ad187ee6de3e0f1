//! The command line: what can be asked of the program, and how it ends.
//!
//! Guarantees: results go to stdout and everything else to stderr; `--json` makes results one JSON value; the exit code
//! is 0 done, 1 failed, 2 wrong usage, 8 outcome unknown, 78 bad configuration. A command that may have changed something
//! without knowing says so by 8, never by 1.
//!
//! Deliberately absent: what commands do: each has its file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod client;
mod doctor;
mod keys;
mod listen;
mod local;
pub(crate) mod output;
mod remote;
mod serve;

use client::Server;
use output::Output;

/// Invoices paid on chain, settled exactly once, and told by signed webhooks.
#[derive(Debug, Parser)]
#[command(
    name = "quittance",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    /// Print results as one JSON value.
    #[arg(long, global = true)]
    json: bool,
    /// The configuration file [default: quittance.toml, if it is there].
    #[arg(long, global = true, env = "QUITTANCE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the engine, the API and the dashboard.
    Serve,
    /// See it work: an embedded chain, five providers and a merchant, everything broken on purpose, every claim checked.
    Dev(crate::dev::DevArgs),
    /// Write a commented quittance.toml to begin with.
    Init(local::Init),
    /// Say whether the configuration is valid, and what is wrong if not.
    CheckConfig(local::CheckConfig),
    /// Check every dependency, and say what to do about what does not work.
    Doctor,
    /// Make, find and withdraw invoices.
    #[command(subcommand)]
    Invoice(remote::Invoice),
    /// Find payments, and say where they belong.
    #[command(subcommand)]
    Payment(remote::Payment),
    /// Endpoints, deliveries, dead letters; follow and verify events.
    #[command(subcommand)]
    Webhook(remote::Webhook),
    /// What is known of the RPC providers.
    #[command(subcommand)]
    Rpc(remote::Rpc),
    /// The chains that are read, and how far each is proven.
    #[command(subcommand)]
    Chain(remote::Chain),
    /// Check a quittance offline. Without an anchor or a trusted key nothing outside the file is proven: exit code 8.
    VerifyEvidence(local::VerifyEvidence),
    /// Make, list and revoke API keys, directly in the database.
    #[command(subcommand)]
    Key(keys::Key),
    /// Look after the database.
    #[command(subcommand)]
    Db(local::Db),
    /// Print the API's OpenAPI 3.1 document.
    Openapi,
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It failed.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// It was asked in a way that cannot be meant.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// It may have happened.
    pub(crate) fn unknown(message: impl Into<String>) -> Self {
        Self { code: 8, message: message.into() }
    }

    /// The configuration is not valid.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self { code: 78, message: message.into() }
    }
}

impl From<crate::config::Invalid> for Failure {
    fn from(invalid: crate::config::Invalid) -> Self {
        Self::config(invalid.to_string())
    }
}

impl From<durable::store::StoreError> for Failure {
    fn from(error: durable::store::StoreError) -> Self {
        Self::new(error.to_string())
    }
}

/// Runs the program as the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output { json: cli.json };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&Failure::new(format!("the runtime does not start: {error}"))),
    };
    // Commands are large futures; one box for the whole process costs nothing.
    let done = runtime.block_on(Box::pin(run(cli, output)));
    // A blocking read may still be under way; nothing that matters waits for it.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.fail(&failure),
    }
}

async fn run(cli: Cli, output: Output) -> Result<(), Failure> {
    let config = cli.config.as_deref();
    match cli.command {
        Command::Serve => serve::run(config, output).await,
        Command::Dev(dev) => crate::dev::run(dev, output).await,
        Command::Init(init) => init.run(output),
        Command::CheckConfig(check) => check.run(config, output),
        Command::Doctor => doctor::run(config, output).await,
        Command::Invoice(invoice) => invoice.run(&cli.server.connect()?, output).await,
        Command::Payment(payment) => payment.run(&cli.server.connect()?, output).await,
        Command::Webhook(webhook) => webhook.run(&cli.server, output).await,
        Command::Rpc(rpc) => rpc.run(&cli.server.connect()?, output).await,
        Command::Chain(chain) => chain.run(&cli.server.connect()?, output).await,
        Command::VerifyEvidence(verify) => verify.run(output),
        Command::Key(key) => key.run(config, output).await,
        Command::Db(db) => db.run(config, output).await,
        Command::Openapi => output.text(&crate::api::document_json()),
        Command::Completions { shell } => output.text(&completions(shell)),
        Command::Man => output.text(&manual()?),
    }
}

fn completions(shell: clap_complete::Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "quittance", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn manual() -> Result<String, Failure> {
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(Cli::command());
    page.render(&mut text).map_err(|error| Failure::new(error.to_string()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The process's environment, as the configuration reads it.
pub(crate) fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// A span as people write it: `90` (seconds), `30s`, `15m`, `2h`, `7d`.
pub(crate) fn parse_span(text: &str) -> Result<std::time::Duration, String> {
    let expected = || "expected a span such as 30s, 15m, 2h or 7d".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let count: u64 = digits.parse().map_err(|_| expected())?;
    count.checked_mul(factor).map(std::time::Duration::from_secs).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn spans_are_read_as_people_write_them() {
        let seconds = |text| parse_span(text).map(|span| span.as_secs());
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("2h"), Ok(7200));
        assert_eq!(seconds("7d"), Ok(604_800));
        for bad in ["", "h", "-1s", "1.5h", "2w", "99999999999999999999d", "9999999999999999d"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }
}
