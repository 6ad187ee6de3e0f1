//! What most people run: a watcher that trusts one provider's `eth_getLogs`, and tells the shop once.
//!
//! One such reader per provider follows the same run over the same HTTP, in real requests, and is fair otherwise: it goes on
//! where it stopped when its provider did not answer, checks token, recipient and amount, and keeps what it has credited.
//! It has no second opinion, no proof, no memory of transactions, no outbox, and starts at the head when it is restarted.
//!
//! What it would have cost is counted by the same function that judges the product: [`compare`].

use std::collections::BTreeMap;
use std::time::Duration;

use alloy_primitives::{Address, B256, U64, U256};
use bytes::Bytes;
use devchain::token::{CONTRACTS, TRANSFER_EVENT};
use http::HeaderValue;
use outside::http::{Client, Http, Request};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;

/// How long it waits for its provider, and for the shop.
const PATIENCE: Duration = Duration::from_secs(1);

/// An invoice that both it and the product are to collect.
#[derive(Debug, Clone)]
pub(super) struct Issued {
    /// Its id at the product.
    pub(super) id: String,
    /// Who is to be paid.
    pub(super) recipient: Address,
    /// Base units.
    pub(super) amount: U256,
}

/// One naive reader.
pub(super) struct Naive {
    name: &'static str,
    rpc: Url,
    shop: Url,
    http: Client,
    next: Option<u64>,
    /// What it has credited, by recipient.
    credited: BTreeMap<Address, U256>,
}

#[derive(Deserialize)]
struct Log {
    topics: Vec<B256>,
    data: alloy_primitives::Bytes,
}

#[derive(Deserialize)]
struct Answer<T> {
    result: Option<T>,
}

impl Naive {
    /// A reader of one provider, which tells the shop at `shop`.
    ///
    /// # Errors
    /// When one of them is no URL.
    pub(super) fn new(
        name: &'static str,
        rpc: &str,
        shop: &str,
        http: &Client,
    ) -> Result<Self, url::ParseError> {
        Ok(Self {
            name,
            rpc: Url::parse(rpc)?,
            shop: Url::parse(&format!("{shop}/naive/{name}"))?,
            http: http.clone(),
            next: None,
            credited: BTreeMap::new(),
        })
    }

    /// The process was killed and started again.
    pub(super) fn restart(&mut self) {
        self.next = None;
    }

    /// Reads what is new and credits it.
    pub(super) async fn look(&mut self, issued: &[Issued]) {
        let Some(head) = self.call::<U64>("eth_blockNumber", json!([])).await.map(|head| head.to::<u64>())
        else {
            return;
        };
        let from = self.next.unwrap_or(head);
        if from > head {
            return;
        }
        let filter = json!([{
            "address": CONTRACTS.dollar,
            "topics": [TRANSFER_EVENT],
            "fromBlock": U64::from(from),
            "toBlock": U64::from(head),
        }]);
        let Some(logs) = self.call::<Vec<Log>>("eth_getLogs", filter).await else { return };
        self.next = Some(head.saturating_add(1));
        for log in logs {
            let (Some(to), Some(amount)) = (log.topics.get(2), U256::try_from_be_slice(&log.data)) else {
                continue;
            };
            let to = Address::from_word(*to);
            if let Some(invoice) = issued.iter().find(|one| one.recipient == to && one.amount <= amount) {
                let sum = self.credited.entry(to).or_default();
                *sum = sum.saturating_add(amount);
                self.tell(&invoice.id).await;
            }
        }
    }

    async fn tell(&self, invoice: &str) {
        let mut request = Request::post(self.shop.clone(), Bytes::from(invoice.to_owned()));
        request.deadline = PATIENCE;
        // Fire and forget: that is the point.
        let _ = self.http.send(request).await;
    }

    async fn call<T: DeserializeOwned>(&self, method: &str, params: serde_json::Value) -> Option<T> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let mut request = Request::post(self.rpc.clone(), body.to_string());
        request.headers.insert("content-type", HeaderValue::from_static("application/json"));
        request.deadline = PATIENCE;
        request.max_response_bytes = 16 << 20;
        let answer = self.http.send(request).await.ok()?;
        serde_json::from_slice::<Answer<T>>(&answer.body).ok()?.result
    }

    /// What it credited to a recipient.
    pub(super) fn credited_to(&self, recipient: Address) -> U256 {
        self.credited.get(&recipient).copied().unwrap_or_default()
    }

    /// Its provider.
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }
}

/// What a reader made of the run, beside what happened on the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Comparison {
    /// Who.
    pub(super) reader: String,
    /// Invoices that it took for paid.
    pub(super) credited: usize,
    /// Paid on the chain, and not noticed.
    pub(super) lost: usize,
    /// Not paid on the chain, and credited.
    pub(super) invented: usize,
    /// Credited with more than was paid.
    pub(super) doubled: usize,
    /// Credited rightly, and the shop does not know.
    pub(super) untold: usize,
    /// What it credited beyond what was paid, in base units.
    pub(super) credited_too_much: String,
    /// What was paid beyond what it credited, in base units.
    pub(super) credited_too_little: String,
}

impl Comparison {
    /// Whether nothing went wrong.
    pub(super) const fn is_clean(&self) -> bool {
        self.lost == 0 && self.invented == 0 && self.doubled == 0 && self.untold == 0
    }
}

/// Judges a reader: `paid` is the chain's own word on an invoice, `credited` the reader's, `told` whether the shop knows.
pub(super) fn compare(
    reader: &str,
    issued: &[Issued],
    paid: impl Fn(&Issued) -> U256,
    credited: impl Fn(&Issued) -> U256,
    told: impl Fn(&Issued) -> bool,
) -> Comparison {
    let mut all = Comparison {
        reader: reader.to_owned(),
        credited: 0,
        lost: 0,
        invented: 0,
        doubled: 0,
        untold: 0,
        credited_too_much: String::new(),
        credited_too_little: String::new(),
    };
    let (mut too_much, mut too_little) = (U256::ZERO, U256::ZERO);
    for invoice in issued {
        let (paid, credited) = (paid(invoice), credited(invoice));
        let noticed = !credited.is_zero();
        all.credited += usize::from(noticed);
        all.lost += usize::from(paid >= invoice.amount && !noticed);
        all.invented += usize::from(paid.is_zero() && noticed);
        all.doubled += usize::from(!paid.is_zero() && credited > paid);
        all.untold += usize::from(noticed && !paid.is_zero() && !told(invoice));
        too_much = too_much.saturating_add(credited.saturating_sub(paid));
        too_little = too_little.saturating_add(paid.saturating_sub(credited));
    }
    all.credited_too_much = too_much.to_string();
    all.credited_too_little = too_little.to_string();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_mistake_is_counted() {
        let issued: Vec<Issued> = (1..=5u8)
            .map(|byte| Issued {
                id: format!("inv_{byte}"),
                recipient: Address::repeat_byte(byte),
                amount: U256::from(10),
            })
            .collect();
        let table =
            |values: [u64; 5]| move |one: &Issued| U256::from(values[usize::from(one.recipient[0]) - 1]);
        let seen = compare("one", &issued, table([10, 10, 0, 10, 0]), table([10, 0, 10, 20, 0]), |one| {
            one.id == "inv_1"
        });
        assert_eq!((seen.credited, seen.lost, seen.invented, seen.doubled, seen.untold), (3, 1, 1, 1, 1));
        assert_eq!((seen.credited_too_much.as_str(), seen.credited_too_little.as_str()), ("20", "10"));
        let right = table([10, 10, 0, 10, 0]);
        assert!(compare("all", &issued, right, right, |_| true).is_clean());
    }
}
