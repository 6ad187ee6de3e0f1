//! Evidence that was kept is the evidence that was given, and damage is noticed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, U256};
use devchain::token::{CONTRACTS, Payment};
use devchain::{Devchain, Provider};
use domain::chain::{Asset, ChainId, TransferKey};
use domain::chance::Chance;
use domain::time::Clock;
use outside::chain::{
    ChainProfile, ChainReader, ProvenBlock, ProviderSetup, ReaderSetup, RootMode, Watch, restore, verify,
};
use outside::clock::SystemClock;
use sim::local::LocalRpc;

async fn read(chain: &Devchain, root_mode: RootMode) -> ProvenBlock {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let providers = ["a", "b"].map(|name| {
        let provider = Arc::new(Provider::new(chain, name));
        ProviderSetup::new(name, name, Arc::new(LocalRpc::new(provider, Arc::clone(&clock))))
    });
    let reader = ChainReader::new(ReaderSetup {
        chain: ChainId::eip155(31_337),
        quorum: 2,
        profile: ChainProfile::of(root_mode),
        providers: providers.into(),
        clock,
        chance: Chance::from_seed(1),
        tags_every: Duration::from_secs(60),
    })
    .unwrap();
    let watch = Watch::all([Asset::Native, Asset::Token(CONTRACTS.dollar)]);
    reader.read_block(1, &watch).await.unwrap()
}

/// A block of so many token transfers, one transaction with two of them, and a payment in the chain's own coin.
fn block_of(transfers: usize, opaque_receipts_root: bool) -> Devchain {
    let chain = Devchain::new(devchain::Config { opaque_receipts_root, ..devchain::Config::default() });
    for number in 0..transfers {
        let to = Address::with_last_byte(u8::try_from(number % 250).unwrap() + 1);
        chain.send_token(CONTRACTS.dollar, number % 16, to, U256::from(number + 1)).unwrap();
    }
    let two = [7, 8].map(|value| Payment {
        token: CONTRACTS.dollar,
        to: Address::with_last_byte(99),
        value: U256::from(value),
    });
    chain.send_payments(3, &two).unwrap();
    chain.send_native(2, Address::with_last_byte(98), U256::from(5)).unwrap();
    chain.mine();
    chain
}

#[tokio::test]
async fn what_is_kept_is_what_was_given() {
    for (transfers, opaque) in [(0, false), (1, false), (14, false), (15, false), (200, false), (5, true)] {
        let mode = if opaque { RootMode::None } else { RootMode::Eth };
        let block = read(&block_of(transfers, opaque), mode).await;
        let all: Vec<TransferKey> = block.transfers.iter().map(|transfer| transfer.key).collect();
        assert_eq!(all.len(), transfers + 3);
        let few: Vec<TransferKey> = all.iter().copied().step_by(7).collect();
        for wanted in [all, few] {
            let given = block.evidence(&wanted);
            let kept = block.keep(&BTreeSet::from_iter(wanted));
            assert_eq!(kept.own.len(), given.len());
            for ((transfer, own), given) in kept.own.iter().zip(given) {
                let restored = restore(transfer, given.level(), &kept.block, own).unwrap();
                assert_eq!(restored, given);
                assert_eq!(verify(&restored, Some(transfer.block.hash)).unwrap().is_proven(), !opaque);
            }
        }
    }
}

#[tokio::test]
async fn damage_is_noticed_or_proves_nothing() {
    let block = read(&block_of(20, false), RootMode::Eth).await;
    let kept = block.keep(&block.transfers.iter().map(|transfer| transfer.key).collect());
    let (transfer, own) = &kept.own[0];
    for part in 0..2 {
        let whole = if part == 0 { &kept.block } else { own };
        for place in 0..whole.len() {
            let mut altered = whole.clone();
            altered[place] ^= 1;
            let (common, own) = if part == 0 { (&altered, own) } else { (&kept.block, &altered) };
            if let Ok(evidence) = restore(transfer, block.level, common, own) {
                let honest = block.evidence(&[transfer.key]);
                // What is left of the change is another voter's name, or what the proof catches, or a branch of others.
                let same = Some(&evidence) == honest.first();
                let caught = verify(&evidence, Some(transfer.block.hash)).is_err();
                let unproven = evidence.voters() != honest[0].voters();
                assert!(same || caught || unproven, "byte {place} of part {part}");
            }
        }
    }
}
