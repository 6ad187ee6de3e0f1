//! Dev accounts: keys derived from the chain's seed, and signing with them.
//!
//! The keys are worth nothing outside a development chain and are handed out freely
//! ([`DevAccount::secret`]): tests and demos put them into keystores and wallets.

use alloy_consensus::transaction::Recovered;
use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Bytes, Signature, TxHash};
use k256::ecdsa::SigningKey;

use crate::block::{Transaction, derived};

/// An account whose key is known.
#[derive(Clone)]
pub struct DevAccount {
    address: Address,
    key: SigningKey,
}

impl std::fmt::Debug for DevAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DevAccount").field(&self.address).finish()
    }
}

impl DevAccount {
    /// The account number `index` of a seed. `purpose` keeps families of accounts apart.
    pub(crate) fn derive(seed: u64, purpose: &str, index: u64) -> Self {
        let mut candidate = derived(seed, purpose, index);
        loop {
            // All but about 2^-128 of the hashes are valid keys.
            if let Ok(key) = SigningKey::from_slice(candidate.as_slice()) {
                let address = Address::from_public_key(key.verifying_key());
                return Self { address, key };
            }
            candidate = alloy_primitives::keccak256(candidate);
        }
    }

    /// The address.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The private key.
    pub fn secret(&self) -> B256 {
        B256::from_slice(&self.key.to_bytes())
    }

    /// Signs a digest (deterministic, RFC 6979).
    pub fn sign_digest(&self, digest: &B256) -> Signature {
        self.key
            .sign_prehash_recoverable(digest.as_slice())
            .map(Signature::from)
            .expect("a 32-byte digest can be signed with a valid key")
    }

    /// The same as 65 bytes `r ‖ s ‖ v` with `v` 27 or 28, as contracts expect them.
    pub fn sign_digest_bytes(&self, digest: &B256) -> [u8; 65] {
        self.sign_digest(digest).as_bytes()
    }

    /// Signs a transaction.
    pub fn sign(&self, tx: TxEip1559) -> SignedTransaction {
        let signature = self.sign_digest(&tx.signature_hash());
        let envelope = TxEnvelope::Eip1559(tx.into_signed(signature));
        SignedTransaction {
            hash: *envelope.tx_hash(),
            raw: envelope.encoded_2718().into(),
            envelope: Recovered::new_unchecked(envelope, self.address),
        }
    }
}

/// A transaction that is ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedTransaction {
    /// Its hash.
    pub hash: TxHash,
    /// What `eth_sendRawTransaction` takes (EIP-2718).
    pub raw: Bytes,
    /// The decoded form.
    pub envelope: Transaction,
}
