//! The commented file that `quittance init` writes. It is valid as it stands, and a test keeps it so.
//!
//! It holds no default that is not also the program's default; what is commented out shows the default.

/// A first `quittance.toml`.
pub const TEMPLATE: &str = r##"# quittance.toml
#
# Any key can be overridden by the environment: QUITTANCE__SECTION__KEY, with a number for an element of a
# list (QUITTANCE__CHAIN__0__QUORUM=3). `quittance check-config --show` tells which value came from where.
# Relative paths are relative to this file. Unknown keys are errors.

[server]
listen = "127.0.0.1:4020"
# public_url = "https://pay.example.com"   # the base of links to the checkout page; default: http://LISTEN
# auth = "keys"                            # "none" lets everyone in, and is refused except on loopback
# max_body_bytes = 1048576
# request_timeout_ms = 30000
# shutdown_grace_ms = 10000                # how long work under way may take to finish at exit

[store]
url = "sqlite://quittance.db"

[[chain]]
id = "eip155:84532"                        # CAIP-2: eip155 and the chain's number. This one is Base Sepolia.
quorum = 2                                 # so many owners must agree before anything is believed
confirmations = 2                          # a number of blocks, "safe" or "finalized"
# root_mode = "eth"                        # "eth", "op" or "none"; default: what is known of the chain
# poll_ms = 1000
# start_block = 0                          # the first block ever read; default: lookback_blocks below the head
# lookback_blocks = 128
rpc_endpoints = [                          # endpoints of different owners: each owner (group) has one vote
  { url = "https://sepolia.base.org", group = "base", timeout_ms = 2000 },
  { url = "https://base-sepolia-rpc.publicnode.com", group = "publicnode" },
  { url = "https://base-sepolia.drpc.org", group = "drpc" },
  # { url_file = "secrets/alpha.url", group = "alpha", max_per_second = 20 },   # a URL that holds a key
]

[[chain.asset]]                            # for display; tokens that are not listed work as well
address = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
symbol = "USDC"
decimals = 6

[webhook]
# max_attempts = 28                        # about three days with this backoff
# timeout_ms = 15000
# initial_backoff_ms = 5000                # doubles, with jitter, up to max_backoff_ms
# max_backoff_ms = 14400000
# endpoint_concurrency = 8                 # attempts under way at once to one endpoint
# max_hold_ms = 259200000                  # events for an endpoint that stays down become dead letters after this
# allow_networks = []                      # private networks that endpoints may live in, e.g. ["10.1.0.0/16"]
# allow_http = false

[log]
# level = "info"
# format = "auto"                          # "json", "pretty", or by whether stderr is a terminal
"##;
