-- Work still to do. Live rows only: a finished job is deleted, a dead one moves to dead_letter.
-- The columns before `input` are what the engine decides by; only the kind's own code reads `input`.
create table job (
    id blob primary key not null, -- UUIDv7, made by whoever enqueues: enqueuing twice is once
    kind text not null,
    state bigint not null, -- 0 ready (or due later), 1 leased, 2 held for its target, 3 parked as unknown
    due_at bigint not null,
    epoch bigint not null, -- the fence: +1 on every way into and out of `leased`
    attempt bigint not null, -- attempts that failed; neither a claim nor a crash counts
    crashes bigint not null, -- leases that ended without an outcome
    worker blob, -- the incarnation that holds the lease
    lease_until bigint, -- past it a rescuer may act; the lease itself ends only by a new epoch
    target text, -- what the work leans on: bounded and broken off together
    unique_key text, -- at most one live job per kind and key
    again_at bigint, -- enqueued again under its key while leased: it is due once more then
    resolver text, -- null: may simply run again after a crash; else the kind that must first find out
    resolves blob, -- for a resolver: the parked job that it alone may release
    resolves_epoch bigint, -- the epoch of that job when it was parked
    condemned text, -- not performed any more, only recorded as dead with this class
    held_since bigint,
    created_at bigint not null,
    last_error text,
    input blob not null
) without rowid;

create index job_ready on job (kind, due_at) where state = 0;
create index job_leased on job (lease_until) where state = 1;
create index job_held on job (target, due_at) where state = 2;
create index job_held_since on job (kind, held_since) where state = 2;
create index job_parked on job (kind) where state = 3;
create unique index job_unique on job (kind, unique_key) where unique_key is not null;

-- Work that was given up, with all that is needed to bring it back.
create table dead_letter (
    id blob primary key not null, -- the job's
    kind text not null,
    class text not null, -- a word to count and filter by
    reason text not null,
    epoch bigint not null, -- a revived job goes on from here, so that no old lease fits it
    attempt bigint not null,
    crashes bigint not null,
    target text,
    unique_key text,
    resolver text,
    resolves blob,
    resolves_epoch bigint,
    created_at bigint not null,
    died_at bigint not null,
    input blob not null
) without rowid;

create index dead_letter_died on dead_letter (died_at);
create index dead_letter_kind on dead_letter (kind, died_at);

-- One row per run of the process: what it leased is released when it no longer beats.
create table incarnation (
    id blob primary key not null,
    started_at bigint not null,
    beat_at bigint not null
) without rowid;

-- The breakers of targets. A target that passes, without a failure, has no row.
create table gate (
    target text primary key not null,
    state text not null, -- passing, tripped, probing, ramping
    failures bigint not null, -- in a row, while passing
    until bigint not null, -- end of the pause, while tripped
    trips bigint not null, -- pauses in a row, while tripped or probing
    allowance bigint not null, -- at a time, while ramping
    changed_at bigint not null
) without rowid;

-- Answers to requests that carried an Idempotency-Key.
create table idempotency (
    scope text not null, -- who asked, and for which operation
    key text not null,
    fingerprint blob not null, -- SHA-256 of the request: the same key must mean the same request
    incarnation blob, -- who is answering; null once answered
    status bigint,
    headers text,
    body blob,
    expires_at bigint not null,
    primary key (scope, key)
) without rowid;

create index idempotency_expires on idempotency (expires_at);

-- Keys of our own, by name.
create table secret (
    name text primary key not null,
    bytes blob not null,
    created_at bigint not null
) without rowid;

-- Who may use the API. The key itself is shown once and not kept.
create table api_key (
    id blob primary key not null,
    name text not null,
    sha256 blob not null unique, -- of the key; keys are random and long, so that a plain hash suffices
    scopes text not null, -- separated by spaces
    created_at bigint not null,
    revoked_at bigint,
    last_used_at bigint -- to the minute
) without rowid;
