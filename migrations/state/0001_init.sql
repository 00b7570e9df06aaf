-- state.db: what a standalone operator must know again after a restart. Times are milliseconds since 1970.

-- Join tokens. The secret itself is never stored.
CREATE TABLE join_tokens (
    id TEXT NOT NULL PRIMARY KEY,
    secret_sha256 BLOB NOT NULL CHECK (length(secret_sha256) = 32),
    -- Both NULL: any service.
    namespace TEXT,
    service TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    CHECK ((namespace IS NULL) = (service IS NULL))
) STRICT, WITHOUT ROWID;

-- Registered instances.
CREATE TABLE registrations (
    instance TEXT NOT NULL PRIMARY KEY,
    namespace TEXT NOT NULL,
    workload TEXT NOT NULL,
    revision TEXT NOT NULL,
    service_account TEXT NOT NULL,
    -- JSON: [{"namespace", "name"}]
    services TEXT NOT NULL,
    address TEXT NOT NULL,
    -- JSON: [{"app", "mesh", "protocol"}]
    ports TEXT NOT NULL,
    outbound_port INTEGER NOT NULL,
    -- JSON: "Starting", "Healthy" or "Unhealthy"
    app TEXT NOT NULL,
    proxy_ready INTEGER NOT NULL,
    draining INTEGER NOT NULL,
    joined_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The status of canaries: the only memory of a rollout.
CREATE TABLE canaries (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    -- JSON
    progress TEXT NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;

-- Verbs of people that are not carried out yet; the last one of an object counts.
CREATE TABLE asked (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    -- JSON
    verb TEXT NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;
