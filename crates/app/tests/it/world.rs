//! The real program against a development chain behind several RPC faces and a receiver of webhooks, all on
//! loopback. Tests wait for what they expect, with a deadline that is only ever reached when it does not come.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, U256};
use app::compose::{App, ComposeError, Ports};
use app::config::{self, Config};
use app::features::endpoint::{self, NewEndpoint};
use app::features::invoice::{self, InvoiceError, NewInvoice};
use devchain::token::CONTRACTS;
use devchain::{Devchain, Face, serve_face};
use domain::chain::{Asset, ChainId, Confirmations};
use domain::event::{EventType, Subscription};
use domain::id::{EndpointId, InvoiceId};
use domain::invoice::Status;
use domain::money::Amount;
use domain::time::{Clock, Timestamp};
use durable::store::block::{self, ChainCursor};
use durable::store::event::EventRow;
use durable::store::invoice::InvoiceRow;
use durable::store::payment::PaymentRow;
use durable::store::{Topic, event, payment};
use outside::clock::SystemClock;
use outside::guard::deadline;
use sim::receiver::Receiver;
use tempfile::TempDir;

/// Nothing here takes as long; what does has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program and its merchant, whatever chain they are shown.
pub(crate) struct Program {
    pub(crate) merchant: Receiver,
    pub(crate) clock: Arc<dyn Clock>,
    directory: TempDir,
    app: Option<Arc<App>>,
}

/// The program in front of a development chain.
pub(crate) struct World {
    pub(crate) chain: Devchain,
    pub(crate) faces: Vec<Face>,
    settings: Settings,
    program: Program,
}

impl Deref for World {
    type Target = Program;
    fn deref(&self) -> &Program {
        &self.program
    }
}

/// What a test wants to be otherwise.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) faces: usize,
    pub(crate) quorum: usize,
    pub(crate) confirmations: &'static str,
    pub(crate) root_mode: &'static str,
    pub(crate) chain: devchain::Config,
}

impl Default for Settings {
    fn default() -> Self {
        Self { faces: 3, quorum: 2, confirmations: "2", root_mode: "eth", chain: devchain::Config::default() }
    }
}

pub(crate) const CHAIN: ChainId = ChainId::eip155(31_337);

pub(crate) fn dollar() -> Asset {
    Asset::Token(CONTRACTS.dollar)
}

/// A recipient of nobody else's.
pub(crate) fn recipient(number: u8) -> Address {
    Address::from([0xc0, number].repeat(10).as_slice().try_into().map(|b: [u8; 20]| b).unwrap())
}

impl World {
    /// A running program that has read the one block of its chain.
    pub(crate) async fn new(settings: Settings) -> Self {
        let mut world = Self::stopped(settings).await;
        world.start().await;
        world.until_head().await;
        world
    }

    pub(crate) async fn stopped(settings: Settings) -> Self {
        let chain = Devchain::new(settings.chain.clone());
        chain.mine();
        let mut faces = Vec::new();
        for number in 0..settings.faces {
            faces.push(serve_face(&chain, &format!("face{number}")).await.unwrap());
        }
        Self { chain, faces, settings, program: Program::new().await }
    }

    pub(crate) fn config(&self) -> Config {
        let urls: Vec<String> = self.faces.iter().map(Face::url).collect();
        self.program.parse(&configuration(&self.settings, &urls, CONTRACTS.dollar))
    }

    pub(crate) async fn start(&mut self) {
        let config = self.config();
        self.program.start(config).await.unwrap();
    }

    pub(crate) fn crash(&mut self) {
        self.program.crash();
    }

    pub(crate) fn wanted(&self, recipient: Address, amount: u64) -> NewInvoice {
        NewInvoice {
            chain: CHAIN,
            asset: dollar(),
            amount: Amount::from(amount),
            recipient,
            payer: None,
            confirmations: self.settings.confirmations.parse().unwrap_or(Confirmations::Depth(2)),
            expires_at: Timestamp::from_seconds(self.chain.head().timestamp + 3600),
            reference: None,
            metadata: None,
        }
    }

    pub(crate) fn pay(&self, to: Address, amount: u64) -> alloy_primitives::B256 {
        self.chain.send_token(CONTRACTS.dollar, 1, to, U256::from(amount)).unwrap()
    }

    pub(crate) async fn until_head(&self) {
        self.until_block(self.chain.head().number).await;
    }
}

/// A configuration file: providers at `urls`, each an owner of its own, and one token.
pub(crate) fn configuration(settings: &Settings, urls: &[String], token: Address) -> String {
    let endpoints: Vec<String> = urls
        .iter()
        .enumerate()
        .map(|(number, url)| format!("{{ url = \"{url}\", group = \"g{number}\", timeout_ms = 400 }}"))
        .collect();
    let confirmations = match settings.confirmations.parse::<u32>() {
        Ok(depth) => depth.to_string(),
        Err(_) => format!("\"{}\"", settings.confirmations),
    };
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nauth = \"none\"\n[store]\nurl = \"sqlite://q.db\"\n\
         [[chain]]\nid = \"{CHAIN}\"\nquorum = {}\nconfirmations = {confirmations}\nroot_mode = \"{}\"\npoll_ms = 20\n\
         start_block = 0\nrpc_endpoints = [{}]\n[[chain.asset]]\naddress = \"{token}\"\nsymbol = \"DUSD\"\ndecimals = 6\n\
         [webhook]\nallow_networks = [\"127.0.0.0/8\"]\nallow_http = true\ninitial_backoff_ms = 20\n\
         max_backoff_ms = 200\n",
        settings.quorum,
        settings.root_mode,
        endpoints.join(", "),
    )
}

impl Program {
    /// A merchant and an empty directory; nothing runs yet.
    pub(crate) async fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let merchant = Receiver::start(Arc::clone(&clock)).await.unwrap();
        Self { merchant, clock, directory: TempDir::new().unwrap(), app: None }
    }

    /// The configuration of this text, with its files in the program's own directory.
    pub(crate) fn parse(&self, text: &str) -> Config {
        config::parse("test.toml", text, self.directory.path(), &[]).unwrap().config
    }

    pub(crate) async fn start(&mut self, config: Config) -> Result<(), ComposeError> {
        let ports = Ports::system(&config)?;
        self.app = Some(App::start(config, ports).await?);
        Ok(())
    }

    /// Ends the program as a crash would: nothing is finished, nothing is said.
    pub(crate) fn crash(&mut self) {
        drop(self.app.take());
    }

    pub(crate) fn app(&self) -> &Arc<App> {
        self.app.as_ref().unwrap()
    }

    /// Registers the merchant for all events of invoices.
    pub(crate) async fn subscribe(&self) -> EndpointId {
        let new = NewEndpoint {
            url: self.merchant.url("/hook"),
            subscriptions: vec![Subscription::Family("invoice")],
            description: None,
        };
        let targets = self.app().targets.clone();
        let row = self.app().store.write(move |tx| endpoint::create(tx, &new, &targets)).await.unwrap();
        let secret = format!(
            "whsec_{}",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, row.secret.expose())
        );
        self.merchant.trust("/hook", &secret).unwrap();
        row.id
    }

    pub(crate) async fn try_create(&self, new: NewInvoice) -> Result<InvoiceRow, InvoiceError> {
        self.app().store.write(move |tx| invoice::create(tx, &new)).await
    }

    pub(crate) async fn create(&self, new: NewInvoice) -> InvoiceId {
        self.try_create(new).await.unwrap().invoice.id
    }

    pub(crate) async fn invoice(&self, id: InvoiceId) -> InvoiceRow {
        self.app().store.read(move |query| durable::store::invoice::find(query, id)).await.unwrap().unwrap()
    }

    pub(crate) async fn payments(&self, id: InvoiceId) -> Vec<PaymentRow> {
        self.app().store.read(move |query| payment::list_of_invoice(query, id)).await.unwrap()
    }

    pub(crate) async fn cursor(&self) -> Option<ChainCursor> {
        self.app().store.read(move |query| block::find_cursor(query, CHAIN)).await.unwrap()
    }

    pub(crate) async fn events(&self) -> Vec<EventRow> {
        self.app().store.read(move |query| event::list_after(query, 0, 10_000)).await.unwrap()
    }

    pub(crate) async fn story(&self, id: InvoiceId) -> Vec<EventType> {
        let rows = self.app().store.read(move |query| event::list_of_invoice(query, id)).await.unwrap();
        let sequences: Vec<u64> = rows.iter().map(|row| row.sequence).collect();
        assert_eq!(sequences, (1..=rows.len() as u64).collect::<Vec<_>>(), "sequence is gapless");
        rows.iter().map(|row| row.kind).collect()
    }

    pub(crate) async fn until_status(&self, id: InvoiceId, status: Status) -> InvoiceRow {
        let invoice = self.invoice(id).await.invoice;
        let what = format!("{id} over {} of {} to be {status}", invoice.amount, invoice.asset);
        self.until(&what, async || {
            let row = self.invoice(id).await;
            (row.invoice.status() == status).then_some(row)
        })
        .await
    }

    pub(crate) async fn until_block(&self, number: u64) {
        self.until(&format!("block {number} to be processed"), async || {
            self.cursor().await.filter(|cursor| cursor.block.number >= number)
        })
        .await;
    }

    /// Asks again whenever something was committed or a moment has passed.
    pub(crate) async fn until<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let mut news = self.app().store.listen(Topic::Events);
        let waiting = async {
            loop {
                if let Some(found) = ask().await {
                    return found;
                }
                tokio::select! {
                    () = news.heard() => {}
                    () = self.clock.sleep(Duration::from_millis(10)) => {}
                }
            }
        };
        match deadline::within(&*self.clock, PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}; cursor {:?}", self.cursor().await),
        }
    }

    /// Lets the program look at the chain `times` more times.
    pub(crate) async fn look(&self, times: u64) {
        let before = self.app().chains[&CHAIN].rounds();
        self.until("more looks at the chain", async || {
            let now = self.app().chains[&CHAIN].rounds();
            (now.agreed + now.failed >= before.agreed + before.failed + times).then_some(())
        })
        .await;
    }
}
