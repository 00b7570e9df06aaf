//! Reading rows of `state.db`.

use super::{StoreError, StoredToken, reading};
use crate::{members::App, registration::Registration};
use airlane_core::{
    id::{BadName, BadSubdomain, ObjectId, ObjectKind, Revision, WorkloadRevision},
    world::{Health, Instance, Interception},
};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sqlx::{Row as _, sqlite::SqliteRow};
use std::{net::IpAddr, sync::Arc};

/// What is wrong with a row.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadRow {
    /// A name is none.
    #[error("a name is not valid")]
    Name(#[from] BadName),
    /// An account's name is none.
    #[error("the name of an account is not valid")]
    Account(#[from] BadSubdomain),
    /// Some JSON is none.
    #[error("a value is not valid")]
    Json(#[from] serde_json::Error),
    /// An address is none.
    #[error("an address is not valid")]
    Address(#[from] std::net::AddrParseError),
    /// A number is out of its range.
    #[error("a number is out of range")]
    Number(#[from] std::num::TryFromIntError),
    /// A time is out of its range.
    #[error("a time is out of range")]
    Time(#[from] jiff::Error),
}

/// Reads the columns of one row.
struct Columns<'r> {
    what: &'static str,
    row: &'r SqliteRow,
}

impl<'r> Columns<'r> {
    fn get<T>(&self, column: &str) -> Result<T, StoreError>
    where
        T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        self.row.try_get(column).map_err(reading(self.what))
    }

    fn damaged<T, E: Into<BadRow>>(&self, value: Result<T, E>) -> Result<T, StoreError> {
        value.map_err(|e| StoreError::Damaged { what: self.what, source: e.into() })
    }

    fn name<T: std::str::FromStr<Err = BadName>>(&self, column: &str) -> Result<T, StoreError> {
        self.damaged(self.get::<&str>(column)?.parse())
    }

    fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, StoreError> {
        self.damaged(serde_json::from_str(self.get(column)?))
    }

    fn time(&self, column: &str) -> Result<Timestamp, StoreError> {
        self.damaged(Timestamp::from_millisecond(self.get(column)?))
    }

    fn optional_time(&self, column: &str) -> Result<Option<Timestamp>, StoreError> {
        self.get::<Option<i64>>(column)?.map(|ms| self.damaged(Timestamp::from_millisecond(ms))).transpose()
    }
}

pub(super) fn token_of(row: &SqliteRow) -> Result<StoredToken, StoreError> {
    let columns = Columns { what: "join tokens", row };
    let namespace: Option<&str> = columns.get("namespace")?;
    let mut secret_sha256 = [0; 32];
    // The table's CHECK holds the length.
    secret_sha256.copy_from_slice(columns.get::<&[u8]>("secret_sha256")?);
    Ok(StoredToken {
        id: columns.get("id")?,
        secret_sha256,
        service: match namespace {
            Some(_) => Some((columns.name("namespace")?, columns.name("service")?)),
            None => None,
        },
        created_at: columns.time("created_at")?,
        expires_at: columns.optional_time("expires_at")?,
        revoked_at: columns.optional_time("revoked_at")?,
    })
}

pub(super) fn registration_of(row: &SqliteRow) -> Result<Registration, StoreError> {
    let columns = Columns { what: "registrations", row };
    let workload = WorkloadRevision {
        namespace: columns.name("namespace")?,
        workload: columns.name("workload")?,
        revision: columns.name::<Revision>("revision")?,
    };
    let address: IpAddr = columns.damaged(columns.get::<&str>("address")?.parse())?;
    let instance = Instance {
        id: columns.name("instance")?,
        workload,
        service_account: columns.damaged(columns.get::<&str>("service_account")?.parse())?,
        services: columns.json("services")?,
        address,
        ipv6: address.is_ipv6(),
        ports: columns.json("ports")?,
        outbound_port: columns.damaged(columns.get::<i64>("outbound_port")?.try_into())?,
        // Who registers here has no network of its own to redirect.
        interception: Interception::Environment,
        stops_within: std::time::Duration::ZERO,
        health: Health::Starting,
    };
    let app: App = columns.json("app")?;
    let (ready, draining) = (columns.get("proxy_ready")?, columns.get("draining")?);
    Ok(Registration::new(Arc::new(instance), app, ready, draining, columns.time("joined_at")?))
}

pub(super) fn canary_row<T: DeserializeOwned>(
    what: &'static str,
    row: &SqliteRow,
    column: &str,
) -> Result<(ObjectId, T), StoreError> {
    let columns = Columns { what, row };
    let id = ObjectId {
        kind: ObjectKind::Canary,
        namespace: columns.name("namespace")?,
        name: columns.name("name")?,
    };
    Ok((id, columns.json(column)?))
}
