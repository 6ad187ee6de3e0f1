//! `quittance key`: API keys, made and revoked directly in the database, since nobody has a key before the first.
//!
//! A key is printed once and never again. The database may be in use by a running server: this process is then its
//! guest and only writes for a moment.

use std::path::Path;
use std::sync::Arc;

use clap::Subcommand;
use domain::chance::Chance;
use domain::id::KeyId;
use durable::store::{Access, Store, StoreError, StoreOptions, api_key};
use outside::clock::SystemClock;
use serde_json::json;

use super::output::Output;
use super::{Failure, environment};
use crate::api::auth::{Scope, digest, mint_key};
use crate::config;

#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Make a key and print it, once.
    Create {
        /// What to call it.
        #[arg(long)]
        name: String,
        /// What it may do: read, write (includes read) or admin (includes both).
        #[arg(long, default_value = "admin", value_parser = parse_scope)]
        scope: Scope,
    },
    /// List keys. The keys themselves are not kept.
    List,
    /// Refuse a key from now on.
    Revoke {
        /// Its id.
        id: KeyId,
    },
}

fn parse_scope(text: &str) -> Result<Scope, String> {
    text.parse().map_err(|_| "expected read, write or admin".to_owned())
}

impl Key {
    pub(super) async fn run(self, file: Option<&Path>, output: Output) -> Result<(), Failure> {
        let store = open_store(file)?;
        match self {
            Self::Create { name, scope } => create(&store, name, scope, output).await,
            Self::List => list(&store, output).await,
            Self::Revoke { id } => revoke(&store, id, output).await,
        }
    }
}

/// The database of the configuration: as its owner if nobody runs on it, else as a guest.
pub(super) fn open_store(file: Option<&Path>) -> Result<Store, Failure> {
    let config = config::load(file, &environment())?.config;
    let chance = Chance::from_system().map_err(|error| Failure::new(error.to_string()))?;
    let open = |access| {
        let options = StoreOptions { access, ..StoreOptions::default() };
        Store::open(&config.store.path, options, Arc::new(SystemClock::new()), chance.clone())
    };
    match open(Access::Owner) {
        Err(StoreError::Locked(_)) => Ok(open(Access::Guest)?),
        opened => Ok(opened?),
    }
}

async fn create(store: &Store, name: String, scope: Scope, output: Output) -> Result<(), Failure> {
    if name.trim().is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
        return Err(Failure::usage("--name: must have 1 to 100 bytes, without control characters"));
    }
    let key = mint_key(store.chance());
    let digest = digest(&key);
    let scopes = vec![scope.as_str().to_owned()];
    let row = store.write(move |tx| api_key::insert(tx, &name, &scopes, &digest)).await;
    let row = row
        .map_err(|error: StoreError| Failure::unknown(format!("the key may not have been kept: {error}")))?;
    let said = json!({ "id": row.id, "name": row.name, "scopes": row.scopes, "key": *key });
    output.result(&said, || {
        format!("{}\n\nThis key ({}) is shown only now. Keep it where secrets are kept.", *key, row.id)
    })
}

async fn list(store: &Store, output: Output) -> Result<(), Failure> {
    let rows = store.read(api_key::list).await?;
    let data: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "id": row.id, "name": row.name, "scopes": row.scopes, "created_at": row.created_at,
                "revoked_at": row.revoked_at, "last_used_at": row.last_used_at,
            })
        })
        .collect();
    let columns = &[
        ("ID", "/id"),
        ("NAME", "/name"),
        ("SCOPES", "/scopes"),
        ("CREATED", "/created_at"),
        ("LAST USED", "/last_used_at"),
        ("REVOKED", "/revoked_at"),
    ];
    output.table(&json!({ "data": data, "next": null }), columns)
}

async fn revoke(store: &Store, id: KeyId, output: Output) -> Result<(), Failure> {
    let revoked: Result<bool, StoreError> = store.write(move |tx| api_key::revoke(tx, id)).await;
    if !revoked? {
        return Err(Failure::new(format!("{id} is no key, or was revoked before")));
    }
    output.result(&json!({ "id": id, "revoked": true }), || format!("{id} is refused from now on"))
}
