//! `state.db`: what a standalone operator must know again after a restart.

mod rows;

use crate::{
    private_file::{PrivateFileError, touch_private},
    registration::Registration,
};
use airlane_core::{
    id::{InstanceId, Name, Namespace, ObjectId},
    rollout::{Asked, Progress},
};
use jiff::Timestamp;
use rows::{BadRow, canary_row, registration_of, token_of};
use sqlx::{
    ConnectOptions as _, SqlSafeStr as _, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqlitePoolOptions, SqliteSynchronous,
    },
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long an operator that starts waits for one that is stopping.
const BUSY: Duration = Duration::from_secs(3);

/// The state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The file could not be kept private.
    #[error("the state file is unusable")]
    File(#[from] PrivateFileError),
    /// Another operator has it.
    #[error("{} is in use: another airlane runs with this state folder; stop it, or name another folder with --state", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It could not be opened.
    #[error("cannot open {}: restore it from a backup, or remove it and let every workload join again", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The library's answer.
        source: sqlx::Error,
    },
    /// A newer operator has written it.
    #[error("{} was written by a newer airlane: run that one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
    },
    /// Its tables could not be made or brought up to date.
    #[error("cannot bring the tables of {} up to date", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// The library's answer.
        source: MigrateError,
    },
    /// A question failed.
    #[error("cannot read {what} from state.db")]
    Read {
        /// Of what.
        what: &'static str,
        /// The library's answer.
        source: sqlx::Error,
    },
    /// A change failed.
    #[error("cannot write {what} to state.db")]
    Write {
        /// Of what.
        what: &'static str,
        /// The library's answer.
        source: sqlx::Error,
    },
    /// A row holds what no operator writes.
    #[error("a row of {what} in state.db is damaged: restore the file from a backup, or remove that row")]
    Damaged {
        /// Of what.
        what: &'static str,
        /// What was expected.
        source: BadRow,
    },
}

/// A join token as it is remembered: without its secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StoredToken {
    /// Its public part.
    pub id: String,
    /// SHA-256 of the secret part.
    pub secret_sha256: [u8; 32],
    /// The one service it lets in; `None`: any.
    pub service: Option<(Namespace, Name)>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it lets in; `None`: until it is revoked.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// The open state. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: SqlitePool,
    is_new: bool,
}

impl Store {
    /// Opens `state.db` in this folder, or makes it there, for this process alone.
    ///
    /// # Errors
    /// If it is not private, in use, damaged, or written by a newer operator.
    pub(crate) async fn open(state_dir: &Path) -> Result<Store, StoreError> {
        let path = state_dir.join("state.db");
        let is_new = !path.exists();
        // SQLite gives its other files the mode of this one.
        touch_private(&path)?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            // What a rollout decided must not be lost with the power.
            .synchronous(SqliteSynchronous::Full)
            .locking_mode(SqliteLockingMode::Exclusive)
            .busy_timeout(BUSY)
            .foreign_keys(true)
            // Whoever waits for another operator's lock is told that it is held, not that a statement is slow.
            .disable_statement_logging();
        // One connection for ever: it is the one that holds the lock.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .map_err(|source| not_opened(&path, source))?;
        migrator().run(&pool).await.map_err(|source| not_migrated(&path, source))?;
        Ok(Store { pool, is_new })
    }

    /// Whether nothing was remembered when it was opened: there was no file.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Closes it: another operator may open it then.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// Remembers a join token.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) async fn add_token(&self, token: &StoredToken) -> Result<(), StoreError> {
        let (namespace, service) = match &token.service {
            Some((namespace, service)) => (Some(namespace.as_str()), Some(service.as_str())),
            None => (None, None),
        };
        sqlx::query(
            "INSERT INTO join_tokens (id, secret_sha256, namespace, service, created_at, expires_at) \
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&token.id)
        .bind(&token.secret_sha256[..])
        .bind(namespace)
        .bind(service)
        .bind(token.created_at.as_millisecond())
        .bind(token.expires_at.map(Timestamp::as_millisecond))
        .execute(&self.pool)
        .await
        .map_err(writing("join tokens"))?;
        Ok(())
    }

    /// The join token with this public part.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) async fn token(&self, id: &str) -> Result<Option<StoredToken>, StoreError> {
        let row = sqlx::query("SELECT * FROM join_tokens WHERE id = ?").bind(id).fetch_optional(&self.pool);
        let row = row.await.map_err(reading("join tokens"))?;
        row.map(|row| token_of(&row)).transpose()
    }

    /// Every join token, the newest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) async fn tokens(&self) -> Result<Vec<StoredToken>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM join_tokens ORDER BY created_at DESC, id").fetch_all(&self.pool);
        rows.await.map_err(reading("join tokens"))?.iter().map(token_of).collect()
    }

    /// Revokes a join token; whether there was one to revoke.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) async fn revoke_token(&self, id: &str, at: Timestamp) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE join_tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL")
            .bind(at.as_millisecond())
            .bind(id)
            .execute(&self.pool)
            .await
            .map_err(writing("join tokens"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Every registered instance.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) async fn registrations(&self) -> Result<Vec<Registration>, StoreError> {
        let rows = sqlx::query("SELECT * FROM registrations ORDER BY instance").fetch_all(&self.pool);
        rows.await.map_err(reading("registrations"))?.iter().map(registration_of).collect()
    }

    /// Remembers and forgets instances, all or none of them.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) async fn write_registrations(
        &self,
        saved: &[Registration],
        forgotten: &[InstanceId],
    ) -> Result<(), StoreError> {
        let failed = writing("registrations");
        let mut transaction = self.pool.begin().await.map_err(&failed)?;
        for registration in saved {
            let instance = &registration.instance;
            sqlx::query(
                "INSERT OR REPLACE INTO registrations (instance, namespace, workload, revision, \
                 service_account, services, address, ports, outbound_port, app, proxy_ready, draining, joined_at) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(instance.id.as_str())
            .bind(instance.workload.namespace.as_str())
            .bind(instance.workload.workload.as_str())
            .bind(instance.workload.revision.as_str())
            .bind(instance.service_account.as_str())
            .bind(json("registrations", &instance.services)?)
            .bind(instance.address.to_string())
            .bind(json("registrations", &instance.ports)?)
            .bind(i64::from(instance.outbound_port))
            .bind(json("registrations", &registration.app)?)
            .bind(registration.proxy_ready)
            .bind(registration.draining)
            .bind(registration.joined_at.as_millisecond())
            .execute(&mut *transaction)
            .await
            .map_err(&failed)?;
        }
        for instance in forgotten {
            sqlx::query("DELETE FROM registrations WHERE instance = ?")
                .bind(instance.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(&failed)?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// The progress of every canary.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) async fn progress(&self) -> Result<BTreeMap<ObjectId, Progress>, StoreError> {
        let rows = sqlx::query("SELECT namespace, name, progress FROM canaries").fetch_all(&self.pool);
        let rows = rows.await.map_err(reading("canaries"))?;
        rows.iter().map(|row| canary_row("canaries", row, "progress")).collect()
    }

    /// Remembers the progress of a canary.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) async fn write_progress(&self, id: &ObjectId, progress: &Progress) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO canaries (namespace, name, progress) VALUES (?, ?, ?)")
            .bind(id.namespace.as_str())
            .bind(id.name.as_str())
            .bind(json("canaries", progress)?)
            .execute(&self.pool)
            .await
            .map_err(writing("canaries"))?;
        Ok(())
    }

    /// Forgets the progress of a canary that was deleted, and what was asked of it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) async fn forget_canary(&self, id: &ObjectId) -> Result<(), StoreError> {
        let failed = writing("canaries");
        let mut transaction = self.pool.begin().await.map_err(&failed)?;
        for delete in [
            "DELETE FROM canaries WHERE namespace = ? AND name = ?",
            "DELETE FROM asked WHERE namespace = ? AND name = ?",
        ] {
            sqlx::query(delete)
                .bind(id.namespace.as_str())
                .bind(id.name.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(&failed)?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// Remembers what a person asks of a canary, until [`Store::carried_out`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) async fn ask(&self, id: &ObjectId, verb: Asked, at: Timestamp) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO asked (namespace, name, verb, asked_at) VALUES (?, ?, ?, ?)")
            .bind(id.namespace.as_str())
            .bind(id.name.as_str())
            .bind(json("asked verbs", &verb)?)
            .bind(at.as_millisecond())
            .execute(&self.pool)
            .await
            .map_err(writing("asked verbs"))?;
        Ok(())
    }

    /// What was asked of canaries and is not carried out yet.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) async fn asked(&self) -> Result<BTreeMap<ObjectId, Asked>, StoreError> {
        let rows = sqlx::query("SELECT namespace, name, verb FROM asked").fetch_all(&self.pool);
        let rows = rows.await.map_err(reading("asked verbs"))?;
        rows.iter().map(|row| canary_row("asked verbs", row, "verb")).collect()
    }

    /// A verb was carried out: remembers the progress it led to and forgets the verb, both or neither, and the verb
    /// only if nothing else was asked since.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) async fn carried_out(
        &self,
        id: &ObjectId,
        verb: Asked,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let failed = writing("canaries");
        let mut transaction = self.pool.begin().await.map_err(&failed)?;
        sqlx::query("INSERT OR REPLACE INTO canaries (namespace, name, progress) VALUES (?, ?, ?)")
            .bind(id.namespace.as_str())
            .bind(id.name.as_str())
            .bind(json("canaries", progress)?)
            .execute(&mut *transaction)
            .await
            .map_err(&failed)?;
        sqlx::query("DELETE FROM asked WHERE namespace = ? AND name = ? AND verb = ?")
            .bind(id.namespace.as_str())
            .bind(id.name.as_str())
            .bind(json("asked verbs", &verb)?)
            .execute(&mut *transaction)
            .await
            .map_err(&failed)?;
        transaction.commit().await.map_err(failed)
    }
}

/// The versions of the tables. A version is never edited once released; a change is a new one.
fn migrator() -> Migrator {
    Migrator::with_migrations(vec![Migration::new(
        1,
        "init".into(),
        MigrationType::Simple,
        include_str!("../../migrations/state/0001_init.sql").into_sql_str(),
        false,
    )])
}

fn is_busy(error: &sqlx::Error) -> bool {
    // SQLITE_BUSY, whatever its extension.
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    code.is_some_and(|code| code & 0xff == 5)
}

fn not_opened(path: &Path, source: sqlx::Error) -> StoreError {
    if is_busy(&source) {
        StoreError::InUse { path: path.to_owned() }
    } else {
        StoreError::Open { path: path.to_owned(), source }
    }
}

fn not_migrated(path: &Path, source: MigrateError) -> StoreError {
    let path = path.to_owned();
    match source {
        MigrateError::VersionMissing(_) => StoreError::Newer { path },
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => not_opened(&path, error),
        source => StoreError::Migrate { path, source },
    }
}

fn reading(what: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Read { what, source }
}

fn writing(what: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Write { what, source }
}

fn json(what: &'static str, value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Damaged { what, source: e.into() })
}

#[cfg(test)]
mod tests;
