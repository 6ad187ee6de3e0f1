//! The contracts that every chain has from its genesis, and how to speak to them.
//!
//! Their addresses never change ([`CONTRACTS`]). The calls are encoded by hand, since a dozen fixed
//! signatures do not justify an ABI compiler; the sources and the recipe for the bytecode are in
//! `contracts/`. The tokens are play money: anyone may mint.

use alloy_primitives::{Address, B256, Bytes, Log, LogData, U256, address, b256, hex, keccak256};

/// `Transfer(address,address,uint256)` of ERC-20.
pub const TRANSFER_EVENT: B256 = b256!("0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
/// `AuthorizationUsed(address,bytes32)` of EIP-3009.
pub const AUTHORIZATION_USED_EVENT: B256 =
    b256!("0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5");
/// `AuthorizationCanceled(address,bytes32)` of EIP-3009.
pub const AUTHORIZATION_CANCELED_EVENT: B256 =
    b256!("0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81");

/// Name in the EIP-712 domain of the dollar token.
pub const DOLLAR_NAME: &str = "Devchain Dollar";
/// Version in the EIP-712 domain of the dollar token.
pub const DOLLAR_VERSION: &str = "2";

/// Who created the contracts; it has no key.
pub(crate) const DEPLOYER: Address = address!("0xdec0de00000000000000000000000000000000de");

/// Where the contracts of genesis are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contracts {
    /// `PlainToken`: ERC-20, symbol PLAIN, 18 decimals.
    pub plain: Address,
    /// `DollarToken`: symbol DUSD, 6 decimals, EIP-3009.
    pub dollar: Address,
    /// `Payouts`: several payments in one transaction. Every dev account has approved it for both tokens.
    pub payouts: Address,
    /// `ContractWallet`: an ERC-1271 wallet owned by dev account 0, holding both tokens.
    pub wallet: Address,
    /// `Impostor`: emits transfer events of money that never moved.
    pub impostor: Address,
}

/// The addresses, the same on every chain and seed.
pub const CONTRACTS: Contracts = Contracts {
    plain: address!("0x139cc35911d77f716a52ab96044e259c8600976f"),
    dollar: address!("0xf7919866733517bbc9a0d8732ac75734f3832bd6"),
    payouts: address!("0x57328b35a1f46f4f1f4cbcf608e2a870aa4b15b6"),
    wallet: address!("0xbc9f5738df9dacef08d8abed9220f46d7d9331ab"),
    impostor: address!("0x00706fa7150e06fd39d094c5ac24f49fbdb3169f"),
};

/// Creation code and constructor arguments, in the order of deployment.
pub(crate) fn deployments(wallet_owner: Address) -> Vec<(Address, Bytes)> {
    let decimals = word(U256::from(18));
    vec![
        (
            CONTRACTS.plain,
            creation(
                include_str!("../contracts/bytecode/PlainToken.hex"),
                &encode(&[Value::Text("Devchain Plain"), Value::Text("PLAIN"), Value::Word(decimals)]),
            ),
        ),
        (
            CONTRACTS.dollar,
            creation(
                include_str!("../contracts/bytecode/DollarToken.hex"),
                &encode(&[Value::Text(DOLLAR_NAME), Value::Text("DUSD")]),
            ),
        ),
        (CONTRACTS.payouts, creation(include_str!("../contracts/bytecode/Payouts.hex"), &[])),
        (
            CONTRACTS.wallet,
            creation(
                include_str!("../contracts/bytecode/ContractWallet.hex"),
                wallet_owner.into_word().as_slice(),
            ),
        ),
        (CONTRACTS.impostor, creation(include_str!("../contracts/bytecode/Impostor.hex"), &[])),
    ]
}

fn creation(code: &str, arguments: &[u8]) -> Bytes {
    let mut bytes = hex::decode(code.trim()).expect("bytecode files are hex");
    bytes.extend_from_slice(arguments);
    bytes.into()
}

/// One payment of [`pay`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payment {
    /// The token; the zero address means native coin.
    pub token: Address,
    /// Who is paid.
    pub to: Address,
    /// Base units.
    pub value: U256,
}

/// ERC-20 `transfer`.
pub fn transfer(to: Address, value: U256) -> Bytes {
    call("transfer(address,uint256)", &[to.into_word(), word(value)])
}

/// ERC-20 `transferFrom`.
pub fn transfer_from(from: Address, to: Address, value: U256) -> Bytes {
    call("transferFrom(address,address,uint256)", &[from.into_word(), to.into_word(), word(value)])
}

/// ERC-20 `approve`.
pub fn approve(spender: Address, value: U256) -> Bytes {
    call("approve(address,uint256)", &[spender.into_word(), word(value)])
}

/// ERC-20 `balanceOf`.
pub fn balance_of(owner: Address) -> Bytes {
    call("balanceOf(address)", &[owner.into_word()])
}

/// `mint` of both tokens: `value` base units to each of `to`.
pub fn mint(to: &[Address], value: U256) -> Bytes {
    let mut words = vec![word(U256::from(64)), word(value), length(to.len())];
    words.extend(to.iter().map(|address| address.into_word()));
    call("mint(address[],uint256)", &words)
}

/// `setBlocked` of the dollar token: while blocked, an account can neither pay nor be paid.
pub fn set_blocked(account: Address, blocked: bool) -> Bytes {
    call("setBlocked(address,bool)", &[account.into_word(), word(U256::from(u8::from(blocked)))])
}

/// `pay` of the payouts contract. Native payments must be sent along as value.
pub fn pay(payments: &[Payment]) -> Bytes {
    let mut words = vec![word(U256::from(32)), length(payments.len())];
    for payment in payments {
        words.extend([payment.token.into_word(), payment.to.into_word(), word(payment.value)]);
    }
    call("pay((address,address,uint256)[])", &words)
}

/// `execute` of the contract wallet; only its owner may.
pub fn execute(to: Address, value: U256, data: &Bytes) -> Bytes {
    let arguments = encode(&[Value::Word(to.into_word()), Value::Word(word(value)), Value::Bytes(data)]);
    selected("execute(address,uint256,bytes)", &arguments)
}

/// `claimTransfer` of the impostor: a transfer event and nothing behind it.
pub fn claim_transfer(from: Address, to: Address, value: U256) -> Bytes {
    call("claimTransfer(address,address,uint256)", &[from.into_word(), to.into_word(), word(value)])
}

/// What the payer signs (EIP-3009).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authorization {
    /// Whether anyone may submit it, or only the payee.
    pub kind: AuthorizationKind,
    /// The payer.
    pub from: Address,
    /// The payee.
    pub to: Address,
    /// Base units.
    pub value: U256,
    /// Valid in blocks later than this time (seconds).
    pub valid_after: U256,
    /// Valid in blocks earlier than this time (seconds).
    pub valid_before: U256,
    /// Unique per payer, not sequential.
    pub nonce: B256,
}

/// Who may submit an authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorizationKind {
    /// `transferWithAuthorization`: anyone.
    Transfer,
    /// `receiveWithAuthorization`: the payee.
    Receive,
}

impl Authorization {
    /// The EIP-712 digest to sign, for the dollar token on `chain_id`.
    pub fn digest(&self, chain_id: u64) -> B256 {
        let name = match self.kind {
            AuthorizationKind::Transfer => "TransferWithAuthorization",
            AuthorizationKind::Receive => "ReceiveWithAuthorization",
        };
        let typehash = keccak256(format!(
            "{name}(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        ));
        let mut words = vec![typehash];
        words.extend(self.words());
        typed_data_digest(chain_id, &words)
    }

    /// The call that submits it, with a 65-byte signature as `v`, `r`, `s`: for payers that are accounts.
    pub fn call_with_vrs(&self, signature: &[u8; 65]) -> Bytes {
        let mut words = self.words();
        words.extend(vrs(signature));
        let signature = match self.kind {
            AuthorizationKind::Transfer => {
                "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
            }
            AuthorizationKind::Receive => {
                "receiveWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
            }
        };
        call(signature, &words)
    }

    /// The call that submits it with opaque signature bytes: for payers that are contract wallets too.
    pub fn call_with_bytes(&self, signature: &[u8]) -> Bytes {
        let words = self.words();
        let mut values: Vec<Value<'_>> = words.into_iter().map(Value::Word).collect();
        values.push(Value::Bytes(signature));
        let name = match self.kind {
            AuthorizationKind::Transfer => {
                "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
            }
            AuthorizationKind::Receive => {
                "receiveWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
            }
        };
        selected(name, &encode(&values))
    }

    fn words(&self) -> Vec<B256> {
        vec![
            self.from.into_word(),
            self.to.into_word(),
            word(self.value),
            word(self.valid_after),
            word(self.valid_before),
            self.nonce,
        ]
    }
}

/// The EIP-712 digest that cancels an unused authorization.
pub fn cancellation_digest(chain_id: u64, authorizer: Address, nonce: B256) -> B256 {
    let typehash = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
    typed_data_digest(chain_id, &[typehash, authorizer.into_word(), nonce])
}

/// The call that cancels an unused authorization.
pub fn cancel_authorization(authorizer: Address, nonce: B256, signature: &[u8; 65]) -> Bytes {
    let mut words = vec![authorizer.into_word(), nonce];
    words.extend(vrs(signature));
    call("cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)", &words)
}

/// `authorizationState`: has this nonce been used or canceled?
pub fn authorization_state(authorizer: Address, nonce: B256) -> Bytes {
    call("authorizationState(address,bytes32)", &[authorizer.into_word(), nonce])
}

/// The EIP-712 domain separator of the dollar token.
pub fn domain_separator(chain_id: u64) -> B256 {
    let typehash =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    keccak256(concat(&[
        typehash,
        keccak256(DOLLAR_NAME),
        keccak256(DOLLAR_VERSION),
        word(U256::from(chain_id)),
        CONTRACTS.dollar.into_word(),
    ]))
}

/// A transfer event as `token` would emit it.
pub fn transfer_log(token: Address, from: Address, to: Address, value: U256) -> Log {
    Log {
        address: token,
        data: LogData::new_unchecked(
            vec![TRANSFER_EVENT, from.into_word(), to.into_word()],
            Bytes::copy_from_slice(word(value).as_slice()),
        ),
    }
}

fn typed_data_digest(chain_id: u64, content: &[B256]) -> B256 {
    let mut preimage = vec![0x19, 0x01];
    preimage.extend_from_slice(domain_separator(chain_id).as_slice());
    preimage.extend_from_slice(keccak256(concat(content)).as_slice());
    keccak256(preimage)
}

fn vrs(signature: &[u8; 65]) -> [B256; 3] {
    [
        word(U256::from(signature[64])),
        B256::from_slice(&signature[..32]),
        B256::from_slice(&signature[32..64]),
    ]
}

fn word(value: U256) -> B256 {
    B256::from(value)
}

fn length(count: usize) -> B256 {
    word(U256::from(count))
}

fn concat(words: &[B256]) -> Vec<u8> {
    words.iter().flat_map(|word| word.0).collect()
}

fn call(signature: &str, words: &[B256]) -> Bytes {
    selected(signature, &concat(words))
}

fn selected(signature: &str, arguments: &[u8]) -> Bytes {
    let mut data = keccak256(signature)[..4].to_vec();
    data.extend_from_slice(arguments);
    data.into()
}

/// An argument of the contract ABI: static ones sit in the head, dynamic ones in the tail.
enum Value<'a> {
    Word(B256),
    Text(&'a str),
    Bytes(&'a [u8]),
}

fn encode(values: &[Value<'_>]) -> Vec<u8> {
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    for value in values {
        let dynamic = match value {
            Value::Word(word) => {
                head.extend_from_slice(word.as_slice());
                continue;
            }
            Value::Text(text) => text.as_bytes(),
            Value::Bytes(bytes) => bytes,
        };
        head.extend_from_slice(length(values.len() * 32 + tail.len()).as_slice());
        tail.extend_from_slice(length(dynamic.len()).as_slice());
        tail.extend_from_slice(dynamic);
        tail.resize(tail.len().next_multiple_of(32), 0);
    }
    head.extend(tail);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_those_the_deployer_creates() {
        let all =
            [CONTRACTS.plain, CONTRACTS.dollar, CONTRACTS.payouts, CONTRACTS.wallet, CONTRACTS.impostor];
        let created: Vec<Address> = (0..5).map(|nonce| DEPLOYER.create(nonce)).collect();
        assert_eq!(all.as_slice(), created.as_slice());
    }

    #[test]
    fn event_topics_are_the_hashes_of_their_signatures() {
        assert_eq!(TRANSFER_EVENT, keccak256("Transfer(address,address,uint256)"));
        assert_eq!(AUTHORIZATION_USED_EVENT, keccak256("AuthorizationUsed(address,bytes32)"));
        assert_eq!(AUTHORIZATION_CANCELED_EVENT, keccak256("AuthorizationCanceled(address,bytes32)"));
    }
}
