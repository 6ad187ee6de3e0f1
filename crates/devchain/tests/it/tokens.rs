//! The contracts of genesis: authorizations that fail for every reason they should, then succeed.

use alloy_primitives::{B256, Bytes, U256};
use devchain::token::{self, Authorization, AuthorizationKind, CONTRACTS};
use devchain::{ChainError, Config, Devchain};

use crate::{dollars, payee};

fn authorization(chain: &Devchain, nonce: u8) -> Authorization {
    Authorization {
        kind: AuthorizationKind::Transfer,
        from: chain.account(1).address(),
        to: payee(1),
        value: dollars(7),
        valid_after: U256::ZERO,
        valid_before: U256::from(chain.head().timestamp + 60),
        nonce: B256::repeat_byte(nonce),
    }
}

fn submit(chain: &Devchain, data: Bytes) -> Result<bool, String> {
    match chain.call_contract(0, CONTRACTS.dollar, U256::ZERO, data) {
        Ok(hash) => {
            chain.mine();
            Ok(chain.receipt(hash).unwrap().status())
        }
        Err(ChainError::CallFailed(reason)) => Err(reason),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_authorization_is_refused_for_each_reason_and_then_works_once() {
    let chain = Devchain::new(Config::default());
    chain.mine();
    let id = chain.config().chain_id;
    let signer = chain.account(1);
    let signed = |a: &Authorization| a.call_with_vrs(&signer.sign_digest_bytes(&a.digest(id)));

    let good = authorization(&chain, 1);
    let mut other = good;
    other.value += U256::from(1);
    let stolen = other.call_with_vrs(&signer.sign_digest_bytes(&good.digest(id)));
    assert_eq!(submit(&chain, stolen), Err("invalid signature".into()));
    let elsewhere = good.call_with_vrs(&signer.sign_digest_bytes(&good.digest(id + 1)));
    assert_eq!(submit(&chain, elsewhere), Err("invalid signature".into()));

    let mut early = good;
    early.valid_after = U256::from(chain.head().timestamp + 30);
    assert_eq!(submit(&chain, signed(&early)), Err("authorization is not yet valid".into()));
    let mut late = good;
    late.valid_before = U256::from(chain.head().timestamp);
    assert_eq!(submit(&chain, signed(&late)), Err("authorization is expired".into()));
    let mut private = good;
    private.kind = AuthorizationKind::Receive;
    assert_eq!(submit(&chain, signed(&private)), Err("caller must be the payee".into()));

    assert!(!chain.authorization_spent(good.from, good.nonce));
    assert_eq!(submit(&chain, signed(&good)), Ok(true));
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(1)), dollars(7));
    assert!(chain.authorization_spent(good.from, good.nonce));
    assert_eq!(submit(&chain, signed(&good)), Err("authorization is used or canceled".into()));

    let block = chain.block(chain.head().number).unwrap();
    let topics: Vec<B256> = block.logs().iter().map(|log| log.topics()[0]).collect();
    assert_eq!(topics, [token::AUTHORIZATION_USED_EVENT, token::TRANSFER_EVENT]);
}

#[test]
fn a_canceled_authorization_never_works() {
    let chain = Devchain::new(Config::default());
    let (id, signer) = (chain.config().chain_id, chain.account(1));
    let good = authorization(&chain, 2);
    let digest = token::cancellation_digest(id, good.from, good.nonce);
    let foreign = chain.account(2).sign_digest_bytes(&digest);
    assert_eq!(
        submit(&chain, token::cancel_authorization(good.from, good.nonce, &foreign)),
        Err("invalid signature".into())
    );
    let own = signer.sign_digest_bytes(&digest);
    assert_eq!(submit(&chain, token::cancel_authorization(good.from, good.nonce, &own)), Ok(true));
    let call = good.call_with_vrs(&signer.sign_digest_bytes(&good.digest(id)));
    assert_eq!(submit(&chain, call), Err("authorization is used or canceled".into()));
    let block = chain.block(chain.head().number).unwrap();
    assert_eq!(block.logs()[0].topics()[0], token::AUTHORIZATION_CANCELED_EVENT);
}

#[test]
fn the_payee_alone_may_submit_a_receive_authorization() {
    let chain = Devchain::new(Config::default());
    let id = chain.config().chain_id;
    let good = Authorization {
        kind: AuthorizationKind::Receive,
        to: chain.account(0).address(),
        ..authorization(&chain, 3)
    };
    let signature = chain.account(1).sign_digest_bytes(&good.digest(id));
    assert_eq!(submit(&chain, good.call_with_bytes(&signature)), Ok(true));
}

#[test]
fn a_contract_wallet_approves_through_its_owner() {
    let chain = Devchain::new(Config::default());
    let id = chain.config().chain_id;
    let from_wallet = Authorization { from: CONTRACTS.wallet, ..authorization(&chain, 4) };
    let digest = from_wallet.digest(id);
    let foreign = chain.account(1).sign_digest_bytes(&digest);
    assert_eq!(submit(&chain, from_wallet.call_with_bytes(&foreign)), Err("invalid signature".into()));
    let owner = chain.account(0).sign_digest_bytes(&digest);
    assert_eq!(submit(&chain, from_wallet.call_with_bytes(&owner)), Ok(true));
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(1)), dollars(7));
    // And it can make calls of its own.
    let inner = token::transfer(payee(2), dollars(1));
    let hash = chain
        .call_contract(0, CONTRACTS.wallet, U256::ZERO, token::execute(CONTRACTS.dollar, U256::ZERO, &inner))
        .unwrap();
    chain.mine();
    assert!(chain.receipt(hash).unwrap().status());
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(2)), dollars(1));
}

#[test]
fn a_blocked_account_can_neither_pay_nor_be_paid() {
    let chain = Devchain::new(Config::default());
    chain.call_contract(0, CONTRACTS.dollar, U256::ZERO, token::set_blocked(payee(1), true)).unwrap();
    chain.mine();
    let hash = chain.send_token(CONTRACTS.dollar, 1, payee(1), dollars(1)).unwrap();
    chain.mine();
    assert!(!chain.receipt(hash).unwrap().status());
    assert_eq!(chain.token_balance(CONTRACTS.dollar, payee(1)), U256::ZERO);
}
