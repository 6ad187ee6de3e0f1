//! `quittance dev`: the product in a world that fails on purpose, and proof that it holds.
//!
//! This process is the outside world: a chain in memory behind five providers, a merchant, and the one who pulls plugs. The
//! product runs beside it as a process of its own and is really killed. The tour tells a story in chapters; every
//! sentence that matters is a claim with a figure, judged against the chain's own balances, the merchant's inbox and
//! the calls the providers received. Then everything is left running, to be played with.
//!
//! Deliberately absent: any way for the world to reach into the product except by its API.

mod claims;
mod merchant;
mod naive;
mod server;
mod steps;
mod tour;
mod world;

use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use devchain::token::CONTRACTS;
use domain::time::Clock;
use futures::future::{Either, select};
use outside::clock::SystemClock;

use crate::cli::Failure;
use crate::cli::output::Output;
use claims::{Report, Story, Stuck, Teller};
use tour::Tour;
use world::{ALPHA, CHAIN_ID};

/// The pause between blocks while everything is left running.
const BLOCK_TIME: Duration = Duration::from_secs(2);
/// The pause before a server that ended by itself is started again.
const BEFORE_RESTART: Duration = Duration::from_secs(1);

/// Play the product with an embedded chain, five providers and a merchant, break everything, and check that it held.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DevArgs {
    /// Where API and dashboard listen; a loopback address (port 0: a free one).
    #[arg(long, default_value = "127.0.0.1:4020", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where database, evidence and log are kept; without it, a temporary directory.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Play the tour and exit: 0 only if every claim held.
    #[arg(long)]
    once: bool,
}

/// Plays the tour, and leaves everything running unless it is to be played once.
///
/// # Errors
/// A claim that did not hold, or a tour that could not be played.
pub(crate) async fn run(args: DevArgs, output: Output) -> Result<(), Failure> {
    let home = Home::of(&args)?;
    let interrupted = std::pin::pin!(interrupted());
    let played = Box::pin(play(&args, home, output));
    match select(played, interrupted).await {
        Either::Left((done, _)) => done,
        // The server is killed with what is dropped here; its database survives that.
        Either::Right(_) if args.once => Err(Failure::new("interrupted: not every claim was judged")),
        Either::Right(_) => Ok(()),
    }
}

/// Ends when the process is asked to end.
async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            let by_hand = std::pin::pin!(tokio::signal::ctrl_c());
            let by_signal = std::pin::pin!(terminate.recv());
            select(by_hand, by_signal).await;
            return;
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Where the tour keeps its files, and where the server listens.
struct Home {
    path: PathBuf,
    /// Removed when the tour held.
    temporary: Option<tempfile::TempDir>,
    listen: SocketAddr,
}

impl Home {
    fn of(args: &DevArgs) -> Result<Self, Failure> {
        if !args.listen.ip().is_loopback() {
            let why = "`dev` needs no keys and therefore listens on loopback only";
            return Err(Failure::usage(format!("--listen {}: {why}", args.listen)));
        }
        let listen = free(args.listen).map_err(|error| {
            let what = "end what listens there, or name another port (0: a free one)";
            Failure::new(format!("--listen {}: {error}: {what}", args.listen))
        })?;
        let (path, temporary) = match &args.data {
            Some(path) => (path.clone(), None),
            None => {
                let made = tempfile::Builder::new().prefix("quittance-dev-").tempdir();
                let made = made.map_err(|error| {
                    Failure::new(format!("no temporary directory: {error}: name one with --data"))
                })?;
                (made.path().to_path_buf(), Some(made))
            }
        };
        if path.join("quittance.db").exists() {
            let why = "holds the database of an earlier tour, whose chain is gone: name a new directory";
            return Err(Failure::usage(format!("--data {}: {why}", path.display())));
        }
        let path = std::path::absolute(&path).map_err(|error| Failure::usage(format!("--data: {error}")))?;
        Ok(Self { path, temporary, listen })
    }

    /// Keeps the directory, also a temporary one.
    fn keep(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            let _ = temporary.keep();
        }
    }
}

/// The address with a port that is free now.
fn free(listen: SocketAddr) -> std::io::Result<SocketAddr> {
    TcpListener::bind(listen)?.local_addr()
}

/// The story goes to the result's place, or, when that is for programs, to a terminal.
fn story(output: Output) -> Story {
    match output.json {
        false => Box::new(move |line| {
            // A reader that has gone has seen enough; the tour goes on.
            let _ = output.text(line);
        }),
        true if std::io::stderr().is_terminal() => Box::new(move |line| output.note(line)),
        true => Box::new(|_| {}),
    }
}

async fn play(args: &DevArgs, mut home: Home, output: Output) -> Result<(), Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let started = clock.monotonic();
    let teller = Teller::new(story(output));
    teller.say("Quittance, in a world that fails on purpose.");
    let mut tour =
        Tour::prepare(&home.path, home.listen, Arc::clone(&clock), teller).await.map_err(|stuck| {
            home.keep();
            Failure::new(format!("the tour cannot begin: {stuck}\nfiles: {}", home.path.display()))
        })?;
    let comparison = steps::play(&mut tour).await;
    let took = clock.monotonic().saturating_sub(started);
    let mut report = Report::new(tour.teller.claims(), comparison, took);
    if !report.held {
        home.keep();
    }
    report.data = home.temporary.is_none().then(|| home.path.display().to_string());
    report.url = (!args.once).then(|| tour.server.url().to_owned());
    output.result(&report, || report.text())?;
    if !args.once {
        stay(&mut tour, output, &*clock, &home.path).await?;
    }
    tour.server.kill().await;
    let failed = report.failed();
    if failed == 0 { Ok(()) } else { Err(Failure::new(format!("{failed} claims did not hold"))) }
}

/// Leaves everything running until the process is asked to end.
async fn stay(tour: &mut Tour, output: Output, clock: &dyn Clock, data: &Path) -> Result<(), Failure> {
    if !output.json {
        output.text(&invitation(tour, data))?;
    }
    loop {
        if next_block_or_end(tour, clock).await {
            tour.world.mine();
        } else {
            tour.teller.say("The server ended; it is started again.");
            clock.sleep(BEFORE_RESTART).await;
            restart(tour)
                .await
                .map_err(|stuck| Failure::new(format!("{stuck}\nlog: {}", tour.server.log.display())))?;
        }
    }
}

/// Waits until a block is due (`true`) or the server has ended (`false`).
async fn next_block_or_end(tour: &mut Tour, clock: &dyn Clock) -> bool {
    let ended = std::pin::pin!(tour.server.ended());
    matches!(select(clock.sleep(BLOCK_TIME), ended).await, Either::Left(_))
}

async fn restart(tour: &mut Tour) -> Result<(), Stuck> {
    tour.server.spawn()?;
    tour.server.ready().await
}

/// How to go on by hand: every line works as it stands.
fn invitation(tour: &mut Tour, data: &Path) -> String {
    let recipient = tour.world.fresh_recipient();
    let (server, merchant) = (tour.server.url().to_owned(), tour.merchant.url());
    let node = tour.world.faces[ALPHA].url();
    let process = tour.server.process().unwrap_or_default();
    format!(
        r#"
Everything is left running, and a block is mined every {seconds} s. Dashboard: {server}/
Files: {data}

Pay an invoice by hand:
  S={server} N={node} TO={recipient}
  curl -s $S/v1/invoices -H 'content-type: application/json' -d '{{"chain":"eip155:{CHAIN_ID}","asset":"DUSD","amount":"2500000","recipient":"'$TO'","expires_in":3600}}'
  curl -s $N -d '{{"jsonrpc":"2.0","id":1,"method":"devchain_sendToken","params":["{dollar}",0,"'$TO'","0x2625a0"]}}'
  sleep 5; curl -s "$S/v1/invoices?limit=1"
  curl -s {merchant}/

Or break something: kill -9 {process}, or make a provider lie (here: it hides every receipt):
  curl -s {node} -d '{{"jsonrpc":"2.0","id":1,"method":"devchain_setFaults","params":[{{"empty_logs":true,"receipts":"empty"}}]}}'
Ctrl-C ends everything."#,
        seconds = BLOCK_TIME.as_secs(),
        data = data.display(),
        dollar = CONTRACTS.dollar,
    )
}
