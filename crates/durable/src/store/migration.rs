//! Numbered changes of the schema, applied in order at open, each in a transaction of its own.
//!
//! Guarantees: what was applied is recorded with the SHA-256 of its text; a database that a newer
//! program wrote, or whose applied migrations differ from the built-in ones, is refused and not touched.
//!
//! Deliberately absent: ways back. A migration is only ever added; an applied one is never edited.

use sha2::{Digest, Sha256};

use super::db::{Query, Tx};
use super::error::StoreError;
use crate::params;

/// One change of the schema.
pub(super) struct Migration {
    number: i64,
    name: &'static str,
    sql: &'static str,
}

macro_rules! migrations {
    ($($number:literal $name:literal),+ $(,)?) => {
        &[$(Migration {
            number: $number,
            name: $name,
            sql: include_str!(concat!("../../migrations/sqlite/", $name, ".sql")),
        }),+]
    };
}

/// All of them, in order. A new file gets a new line.
pub(super) const SQLITE: &[Migration] = migrations![
    1 "0001_engine",
    2 "0002_money",
];

/// Who may change the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Applies what is missing.
    Apply,
    /// Refuses a database that is not up to date.
    Check,
}

/// Brings the database up to `migrations`, or checks that it is.
pub(super) fn run(
    tx: &mut Tx,
    migrations: &[Migration],
    mode: Mode,
    now: domain::time::Timestamp,
) -> Result<(), StoreError> {
    let applied = applied(tx)?;
    let known = migrations.last().map_or(0, |last| last.number);
    let found = applied.last().map_or(0, |(number, _)| *number);
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for (migration, (number, digest)) in migrations.iter().zip(&applied) {
        if migration.number != *number || migration.digest() != *digest {
            return Err(StoreError::Changed(*number));
        }
    }
    let missing = migrations.get(applied.len()..).unwrap_or_default();
    if mode == Mode::Check && !missing.is_empty() {
        return Err(StoreError::Outdated { found, known });
    }
    for migration in missing {
        apply(tx, migration, now)?;
    }
    Ok(())
}

fn applied(tx: &mut Tx) -> Result<Vec<(i64, [u8; 32])>, StoreError> {
    let exists = "select 1 from sqlite_master where type = 'table' and name = 'migration'";
    if tx.query_opt(exists, params![], |_| Ok(()))?.is_none() {
        return Ok(Vec::new());
    }
    tx.query("select number, sha256 from migration order by number", params![], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
}

fn apply(tx: &mut Tx, migration: &Migration, now: domain::time::Timestamp) -> Result<(), StoreError> {
    tx.begin()?;
    let done = tx.script(RECORD).and_then(|()| tx.script(migration.sql)).and_then(|()| {
        tx.execute(
            "insert into migration (number, name, sha256, applied_at) values ($1, $2, $3, $4)",
            params![migration.number, migration.name, migration.digest(), now],
        )
    });
    match done {
        Ok(_) => tx.commit(),
        Err(error) => {
            tx.rollback()?;
            Err(error)
        }
    }
}

const RECORD: &str = "create table if not exists migration (
    -- Which changes of the schema this database has seen.
    number bigint primary key,
    name text not null,
    sha256 blob not null, -- of the file's text, to notice an edit after the fact
    applied_at bigint not null
)";

impl Migration {
    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.sql).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use domain::chance::Chance;
    use domain::time::Timestamp;

    use super::super::db::Durability;
    use super::*;

    fn open(dir: &tempfile::TempDir) -> Tx {
        Tx::open(&dir.path().join("db"), Durability::ProcessExit, Chance::from_seed(1)).unwrap()
    }

    const ONE: Migration = Migration { number: 1, name: "0001_one", sql: "create table one (a bigint);" };
    const TWO: Migration =
        Migration { number: 2, name: "0002_two", sql: "create table two (a bigint); syntax error" };

    #[test]
    fn every_file_has_its_line_and_numbers_have_no_gaps() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().trim_end_matches(".sql").to_owned())
            .collect();
        let lines: BTreeSet<String> = SQLITE.iter().map(|m| m.name.to_owned()).collect();
        assert_eq!(files, lines);
        for (place, migration) in (1..).zip(SQLITE) {
            assert_eq!(migration.number, place);
            assert!(migration.name.starts_with(&format!("{place:04}_")));
        }
    }

    #[test]
    fn a_failing_migration_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut tx = open(&dir);
        assert!(run(&mut tx, &[ONE, TWO], Mode::Apply, Timestamp::EPOCH).is_err());
        assert_eq!(applied(&mut tx).unwrap().len(), 1);
        assert!(tx.query("select * from two", params![], |_| Ok(())).is_err());
        run(&mut tx, &[ONE], Mode::Apply, Timestamp::EPOCH).unwrap();
    }

    #[test]
    fn refuses_newer_changed_and_outdated_databases() {
        let dir = tempfile::tempdir().unwrap();
        let mut tx = open(&dir);
        let outdated = run(&mut tx, &[ONE], Mode::Check, Timestamp::EPOCH);
        assert_eq!(outdated, Err(StoreError::Outdated { found: 0, known: 1 }));
        run(&mut tx, &[ONE], Mode::Apply, Timestamp::EPOCH).unwrap();
        run(&mut tx, &[ONE], Mode::Check, Timestamp::EPOCH).unwrap();
        let newer = run(&mut tx, &[], Mode::Apply, Timestamp::EPOCH);
        assert_eq!(newer, Err(StoreError::Newer { found: 1, known: 0 }));
        let edited = Migration { sql: "create table one (a bigint, b bigint);", ..ONE };
        assert_eq!(run(&mut tx, &[edited], Mode::Apply, Timestamp::EPOCH), Err(StoreError::Changed(1)));
    }
}
