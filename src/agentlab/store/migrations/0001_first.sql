-- Instants are UTC integer milliseconds (…_ms), durations too.  Lists and small values that are only shown are JSON.

CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- AUTOINCREMENT: a number is never given twice, also after old events were pruned; readers resume from it.
CREATE TABLE event (
  seq     INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ms   INTEGER NOT NULL,
  type    TEXT NOT NULL,
  subject TEXT NOT NULL,
  data    TEXT NOT NULL
) STRICT;
CREATE INDEX event_subject ON event (subject, seq);

CREATE TABLE sandbox (
  id                 TEXT PRIMARY KEY,
  name               TEXT,
  owner              TEXT NOT NULL,
  backend            TEXT NOT NULL,
  profile            TEXT NOT NULL,
  template           TEXT NOT NULL,
  template_digest    TEXT NOT NULL,
  wish               TEXT NOT NULL,
  state              TEXT NOT NULL,
  installation       TEXT NOT NULL,
  nonce              TEXT NOT NULL,
  slot               INTEGER NOT NULL CHECK (slot >= 0),
  memory_bytes       INTEGER NOT NULL,
  cpus               REAL NOT NULL,
  pids_max           INTEGER NOT NULL,
  disk_bytes         INTEGER NOT NULL,
  secrets_bytes      INTEGER NOT NULL,
  network            TEXT NOT NULL,
  lease_until_ms     INTEGER NOT NULL,
  created_ms         INTEGER NOT NULL,
  user               TEXT NOT NULL,
  job                TEXT,  -- no foreign key: a fact that outlives the job's row
  keepalive          INTEGER NOT NULL CHECK (keepalive IN (0, 1)),
  failure            TEXT,
  ready_ms           INTEGER,
  ended_ms           INTEGER,
  ended_reason       TEXT NOT NULL,
  missing_guarantees TEXT NOT NULL,
  lease_warned_s     INTEGER,
  nested_sandboxes   INTEGER NOT NULL CHECK (nested_sandboxes IN (0, 1)),
  source_sandbox     TEXT,  -- no foreign key: a fork outlives its origin
  source_nonce       TEXT,
  source_snapshot    TEXT,
  restore_to         TEXT,
  CHECK ((source_sandbox IS NULL) = (source_nonce IS NULL) AND (source_sandbox IS NULL) = (source_snapshot IS NULL))
) STRICT;
CREATE UNIQUE INDEX sandbox_living_name ON sandbox (name) WHERE state <> 'destroyed' AND name IS NOT NULL;
CREATE UNIQUE INDEX sandbox_living_slot ON sandbox (slot) WHERE state <> 'destroyed';
CREATE INDEX sandbox_living ON sandbox (created_ms, id) WHERE state <> 'destroyed';
CREATE INDEX sandbox_created ON sandbox (created_ms, id);
CREATE INDEX sandbox_name ON sandbox (name, created_ms);
CREATE INDEX sandbox_template ON sandbox (template_digest);
CREATE INDEX sandbox_source ON sandbox (source_sandbox, source_snapshot) WHERE source_sandbox IS NOT NULL;

CREATE TABLE snapshot (
  row          INTEGER PRIMARY KEY,  -- in the order in which they were asked for
  sandbox      TEXT NOT NULL REFERENCES sandbox (id) ON DELETE CASCADE,
  name         TEXT NOT NULL,
  state        TEXT NOT NULL,
  memory       INTEGER NOT NULL CHECK (memory IN (0, 1)),
  transient    INTEGER NOT NULL CHECK (transient IN (0, 1)),
  requested_ms INTEGER NOT NULL,
  taken_ms     INTEGER,
  bytes_count  INTEGER NOT NULL CHECK (bytes_count >= 0),
  failure      TEXT,
  UNIQUE (sandbox, name)
) STRICT;
CREATE INDEX snapshot_unfinished ON snapshot (sandbox) WHERE state IN ('requested', 'removing') OR transient;

CREATE TABLE step (
  row        INTEGER PRIMARY KEY,
  subject    TEXT NOT NULL,
  operation  TEXT NOT NULL,
  step       TEXT NOT NULL,
  started_ms INTEGER NOT NULL,
  ended_ms   INTEGER,
  outcome    TEXT NOT NULL,
  detail     TEXT NOT NULL
) STRICT;
CREATE INDEX step_subject ON step (subject, row);
CREATE INDEX step_running ON step (row) WHERE outcome = 'running';

CREATE TABLE job (
  id             TEXT PRIMARY KEY,
  owner          TEXT NOT NULL,
  state          TEXT NOT NULL,
  profile        TEXT NOT NULL,
  agent          TEXT NOT NULL,
  repo_url       TEXT,
  repo_bundle    TEXT,
  repo_ref       TEXT,
  repo_origin    TEXT NOT NULL,
  env_names      TEXT NOT NULL,
  artifact_globs TEXT NOT NULL,
  timeout_ms     INTEGER NOT NULL,
  ttl_ms         INTEGER NOT NULL,
  keepalive      INTEGER NOT NULL CHECK (keepalive IN (0, 1)),
  queued_ms      INTEGER NOT NULL,
  sandbox        TEXT,  -- no foreign key: a fact that outlives the sandbox's tombstone
  phase          TEXT NOT NULL,
  started_ms     INTEGER,
  running_ms     INTEGER,
  collecting_ms  INTEGER,
  ended_ms       INTEGER,
  stop_reason    TEXT,
  stop_ms        INTEGER,
  result         TEXT,
  failure        TEXT,
  output_bytes   INTEGER NOT NULL,
  rescues        INTEGER NOT NULL,
  backend        TEXT
) STRICT;
CREATE INDEX job_state ON job (state, queued_ms, id);
CREATE INDEX job_queued ON job (queued_ms, id);
CREATE INDEX job_bundle ON job (repo_bundle) WHERE repo_bundle IS NOT NULL;

-- Up to a megabyte of task beside the row, so that an update of the row does not write it again.
CREATE TABLE job_input (
  job        TEXT PRIMARY KEY REFERENCES job (id) ON DELETE CASCADE,
  task       TEXT NOT NULL,
  sealed_env BLOB
) STRICT;

CREATE TABLE job_progress (
  job          TEXT PRIMARY KEY REFERENCES job (id) ON DELETE CASCADE,
  output_acked INTEGER NOT NULL DEFAULT 0,
  event_acked  INTEGER NOT NULL DEFAULT 0,
  reported     INTEGER NOT NULL DEFAULT 0 CHECK (reported IN (0, 1))
) STRICT;

CREATE TABLE guest_grant (
  token_hash      TEXT PRIMARY KEY,
  sandbox         TEXT NOT NULL REFERENCES sandbox (id) ON DELETE CASCADE,
  job             TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
  rescue          INTEGER NOT NULL CHECK (rescue IN (0, 1)),
  expires_ms      INTEGER NOT NULL,
  redeemed_by     TEXT,
  redeemed_ms     INTEGER,
  redemptions     INTEGER NOT NULL DEFAULT 0,
  acknowledged    INTEGER NOT NULL DEFAULT 0 CHECK (acknowledged IN (0, 1)),
  credential_hash TEXT UNIQUE
) STRICT;
CREATE INDEX guest_grant_sandbox ON guest_grant (sandbox);
CREATE INDEX guest_grant_job ON guest_grant (job);

CREATE TABLE artifact (
  job         TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
  name        TEXT NOT NULL,
  kind        TEXT NOT NULL,
  bytes_count INTEGER NOT NULL CHECK (bytes_count >= 0),
  digest      TEXT NOT NULL,
  created_ms  INTEGER NOT NULL,
  PRIMARY KEY (job, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE template (
  row           INTEGER PRIMARY KEY,
  name          TEXT NOT NULL,
  digest        TEXT NOT NULL UNIQUE,
  recipe_digest TEXT NOT NULL,
  state         TEXT NOT NULL,
  bytes_count   INTEGER NOT NULL,
  built_ms      INTEGER,
  build_ms      INTEGER,
  packages      TEXT NOT NULL,
  step          TEXT NOT NULL,
  failure       TEXT
) STRICT;
CREATE INDEX template_name ON template (name);

CREATE TABLE idempotency (
  owner       TEXT NOT NULL,
  key         TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  response    TEXT NOT NULL,
  created_ms  INTEGER NOT NULL,
  PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_created ON idempotency (created_ms);
