//! The tour's cast in one place, and the few moves that every chapter makes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::U256;
use domain::time::Clock;

use super::claims::{Stuck, Teller};
use super::merchant::{Merchant, Message};
use super::naive::{Issued, Naive};
use super::server::{Invoice, NewInvoice, PATIENCE, Server, Setup};
use super::world::{GROUPS, Mined, QUORUM, World};

/// Everybody who plays.
pub(super) struct Tour {
    /// The chain and its providers.
    pub(super) world: World,
    /// Who is told.
    pub(super) merchant: Merchant,
    /// What is tested.
    pub(super) server: Server,
    /// What it is compared with.
    pub(super) naive: Vec<Naive>,
    /// Who speaks.
    pub(super) teller: Teller,
    /// Every invoice so far.
    pub(super) issued: Vec<Issued>,
    /// Where files go.
    pub(super) directory: PathBuf,
    /// Time.
    pub(super) clock: Arc<dyn Clock>,
}

impl Tour {
    /// Sets the stage: chain, providers, merchant, server, and one naive reader for each provider.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub(super) async fn prepare(
        directory: &Path,
        listen: SocketAddr,
        clock: Arc<dyn Clock>,
        teller: Teller,
    ) -> Result<Self, Stuck> {
        let no_port = |error: std::io::Error| Stuck::new("a free loopback port", error);
        let world = World::new(Arc::clone(&clock)).await.map_err(no_port)?;
        let merchant = Merchant::open(Arc::clone(&clock)).await.map_err(no_port)?;
        let setup = Setup {
            directory,
            listen,
            providers: GROUPS.into_iter().zip(&world.faces).collect(),
            quorum: QUORUM,
            start_block: 1,
        };
        let mut server = Server::new(&setup, Arc::clone(&clock))?;
        let naive = GROUPS
            .into_iter()
            .zip(&world.faces)
            .map(|(group, face)| Naive::new(group, &face.url(), &merchant.url(), server.http()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Stuck::new("a URL", error))?;
        teller.say(format_args!(
            "A chain in memory, shown by {} providers of different owners, of which {QUORUM} have to agree; a merchant; the server at {}.",
            world.faces.len(),
            server.url(),
        ));
        server.spawn()?;
        server.ready().await?;
        let secret = server.register(&format!("{}/webhooks", merchant.url())).await?;
        if !merchant.trust(&secret) {
            return Err(Stuck::new("a signing secret in base64 after `whsec_`", "something else"));
        }
        let directory = directory.to_path_buf();
        let mut tour = Self { world, merchant, server, naive, teller, issued: Vec::new(), directory, clock };
        tour.look_naively().await;
        Ok(tour)
    }

    /// Makes an invoice with a recipient of its own.
    ///
    /// # Errors
    /// When the server does not make it.
    pub(super) async fn invoice(&mut self) -> Result<Issued, Stuck> {
        let number = self.issued.len() + 1;
        // Odd amounts, so that no sum is right by accident.
        let amount = U256::from(2_500_000 + 1_003 * number);
        let recipient = self.world.fresh_recipient();
        let reference = format!("order-{number}");
        let new = NewInvoice { amount, recipient, reference: &reference };
        let made = self.server.create_invoice(new, &reference).await?;
        let issued = Issued { id: made.id, recipient, amount };
        self.issued.push(issued.clone());
        Ok(issued)
    }

    /// As [`Tour::invoice`], several.
    ///
    /// # Errors
    /// When the server does not make one.
    pub(super) async fn invoices(&mut self, count: usize) -> Result<Vec<Issued>, Stuck> {
        let mut made = Vec::with_capacity(count);
        for _ in 0..count {
            made.push(self.invoice().await?);
        }
        Ok(made)
    }

    /// Has a customer pay an invoice; a block has to be mined yet.
    ///
    /// # Errors
    /// When the chain refuses.
    pub(super) fn pay(&mut self, invoice: &Issued) -> Result<alloy_primitives::B256, Stuck> {
        let paid = self.world.pay(invoice.recipient, invoice.amount);
        paid.map_err(|error| Stuck::new("the chain takes a payment", error))
    }

    /// Mines a block, and lets the naive readers look.
    pub(super) async fn mine(&mut self) -> Mined {
        let mined = self.world.mine();
        self.look_naively().await;
        mined
    }

    /// Lets the naive readers look.
    pub(super) async fn look_naively(&mut self) {
        let issued = &self.issued;
        futures::future::join_all(self.naive.iter_mut().map(|reader| reader.look(issued))).await;
    }

    /// Waits until the API shows an invoice settled.
    ///
    /// # Errors
    /// When it does not in time.
    pub(super) async fn settled(&self, invoice: &Issued) -> Result<Invoice, Stuck> {
        self.server.wait_for_invoice(&invoice.id, "settled", |seen| seen.status == "settled").await
    }

    /// Waits until the merchant has the `nth` (from 1) event of a kind about an invoice.
    ///
    /// # Errors
    /// When it does not in time.
    pub(super) async fn told(&self, invoice: &Issued, kind: &str, nth: usize) -> Result<Message, Stuck> {
        let expected = format!("{kind} number {nth} about {}", invoice.id);
        self.merchant
            .wait(&expected, PATIENCE, |books| {
                books
                    .about(&invoice.id)
                    .filter(|message| message.kind == kind)
                    .nth(nth.checked_sub(1)?)
                    .cloned()
            })
            .await
    }

    /// The time from a moment of the monotonic clock to another.
    pub(super) fn since(&self, earlier: Duration) -> Duration {
        self.clock.monotonic().saturating_sub(earlier)
    }
}
