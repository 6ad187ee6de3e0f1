-- What is owed, what was seen on chain, and whom to tell.
--
-- Palette: bigint (times in milliseconds UTC, counts, flags 0/1), text (states, decimal amounts, CAIP-2 chains), blob
-- (ids, hashes, 20-byte addresses). Amounts exceed 64 bits, so they are text and are never
-- compared or added in SQL, except for equality of their canonical decimal spelling.

-- One row per invoice. The sums are kept beside the payments they are made of, and change in the same transaction.
create table invoice (
    id              blob   not null primary key,
    chain           text   not null,
    asset           text   not null,
    recipient       blob   not null,
    payer           blob,
    amount          text   not null,
    confirmations   text   not null,
    reference       text,
    metadata        text,
    created_at      bigint not null,
    -- the chain's agreed height then; null while it is not known
    created_block   bigint,
    expires_at      bigint not null,
    -- derived from the sums by one function; stored so that lists can filter by it
    status          text   not null,
    -- 1 while the invoice still waits for money
    active          bigint not null,
    -- the amount less what was seen in time
    remaining       text   not null,
    paid_seen       text   not null,
    paid_confirmed  text   not null,
    paid_finalized  text   not null,
    late_seen       text   not null,
    late_confirmed  text   not null,
    late_finalized  text   not null,
    expired         bigint not null,
    canceled        bigint not null,
    reverted        bigint not null,
    sequence        bigint not null,
    -- held while the invoice is active and names no payer: two open invoices that could not be told apart collide here
    slot            blob,
    settled_at      bigint,
    -- the transaction whose confirmation settled it
    settled_by      blob
) without rowid;
create unique index invoice_slot on invoice (slot) where slot is not null;
-- whether a recipient is an invoice's own; no two invoices of a chain share it then
create index invoice_recipient on invoice (recipient, chain);
create index invoice_remaining on invoice (recipient, chain, asset, remaining) where active = 1 and payer is null;
create index invoice_closed on invoice (recipient, chain, asset, remaining, expires_at)
    where status in ('expired', 'underpaid') and payer is null;
create index invoice_undated on invoice (chain) where created_block is null;
create index invoice_payer on invoice (payer, recipient, chain, asset) where active = 1 and payer is not null;
create index invoice_expiry on invoice (chain, expires_at, id) where active = 1 and expired = 0;
create index invoice_status on invoice (status, id);

-- One row per transfer that concerns us, for ever: a reorg marks it reverted, re-inclusion moves it to its new block.
-- The key is what survives re-inclusion: a transaction's hash and the log's place among the transaction's own logs
-- (-1: its top-level value). One row belongs to at most one invoice: that is how a transfer settles at most once.
create table payment (
    id            blob   not null primary key,
    chain         text   not null,
    tx            blob   not null,
    ordinal       bigint not null,
    block_number  bigint not null,
    block_hash    blob   not null,
    block_time    bigint not null,
    tx_index      bigint not null,
    log_index     bigint,
    asset         text   not null,
    payer         blob   not null,
    recipient     blob   not null,
    amount        text   not null,
    stage         text   not null,
    -- how it is known: DEGRADED, QUORUM or VERIFIED
    level         text   not null,
    -- when it counts as confirmed; the invoice's rule at the time of matching
    confirmations text   not null,
    invoice_id    blob,
    -- matched | ambiguous | no_invoice | other_payer | assigned
    matching      text   not null,
    -- for an ambiguous payment: the ids of the invoices it fits, 16 bytes each
    candidates    blob,
    late          bigint not null,
    seen_at       bigint not null,
    confirmed_at  bigint
) without rowid;
create unique index payment_transfer on payment (tx, ordinal, chain);
-- those of a stage in the order of their blocks: what may advance, what vanishes, what had been final
create index payment_stage on payment (chain, stage, block_number, id);
create index payment_invoice on payment (invoice_id, id) where invoice_id is not null;
create index payment_unmatched on payment (recipient, chain, asset, payer, id) where invoice_id is null;
create index payment_matching on payment (matching, id) where matching in ('ambiguous', 'no_invoice', 'other_payer');

-- What the proofs of a block's payments have in common: its header, who agreed on it, the branches of its tries.
create table block_evidence (
    chain      text not null,
    block_hash blob not null,
    evidence   blob not null,
    primary key (chain, block_hash)
) without rowid;

-- A payment's own part of the proof that it is in its present block: the leaves that hold its transaction and receipt.
create table payment_evidence (
    payment_id blob   not null primary key,
    evidence   blob   not null
) without rowid;

-- Proven blocks: a ring that reaches below finality, so that a reorg, also one that happened while we were away, is
-- found and reverted exactly.
create table block (
    chain       text   not null,
    number      bigint not null,
    hash        blob   not null,
    parent_hash blob   not null,
    time        bigint not null,
    primary key (chain, number)
) without rowid;

-- One row per chain: how far it is proven. The cursor moves only with the effects of its block.
create table chain_cursor (
    chain           text   not null primary key,
    number          bigint not null,
    hash            blob   not null,
    time            bigint not null,
    safe            bigint not null,
    finalized       bigint not null,
    -- the height that enough groups agreed on when we last looked
    head            bigint not null,
    level           text   not null,
    -- why settling stopped on this chain, if it did; observing goes on
    frozen          text,
    -- why the last reading got no further, if it did not
    stalled         text,
    advanced_at     bigint not null
) without rowid;

-- Tokens we read on a chain: configured ones, and those of any invoice.
create table watched_asset (
    chain text   not null,
    asset text   not null,
    since bigint not null,
    primary key (chain, asset)
) without rowid;

-- In which of the last blocks a recipient of nobody's was paid, so that an invoice made after its payment can be
-- matched: the block is then read and proven again. Pruned below the look-back.
create table sighting (
    chain        text   not null,
    recipient    blob   not null,
    block_number bigint not null,
    primary key (chain, recipient, block_number)
) without rowid;
create index sighting_block on sighting (chain, block_number);

-- A log that some groups claim and others deny, on a chain without a checkable root: it freezes only the
-- invoices it could touch, until k explicit negatives at a finalized hash close it.
create table disputed_claim (
    chain        text   not null,
    tx           blob   not null,
    ordinal      bigint not null,
    block_number bigint not null,
    block_hash   blob   not null,
    block_time   bigint not null,
    tx_index     bigint not null,
    log_index    bigint,
    asset        text   not null,
    payer        blob   not null,
    recipient    blob   not null,
    amount       text   not null,
    claimants    text   not null,
    opened_at    bigint not null,
    closed_at    bigint,
    verdict      text,
    primary key (chain, tx, ordinal, block_hash, asset, payer, recipient, amount)
) without rowid;
create index disputed_claim_open on disputed_claim (chain, recipient) where closed_at is null;

-- What happened, in the order in which it was committed. The body is frozen: these bytes are signed, sent and replayed.
-- Not `without rowid`: its rows are long, and would leave a page of their own to each body.
create table event (
    position   integer not null primary key,
    id         blob    not null,
    type       text    not null,
    -- the invoice, or null for what concerns no invoice
    subject    blob,
    sequence   bigint  not null,
    created_at bigint  not null,
    body       blob    not null
);
create index event_subject on event (subject, sequence) where subject is not null;

-- Where a merchant wants to be told.
create table endpoint (
    id              blob   not null primary key,
    url             text   not null,
    event_types     text   not null,
    description     text,
    secret          blob   not null,
    -- why it is no longer delivered to, if it is not
    disabled        text,
    created_at      bigint not null,
    deleted_at      bigint
) without rowid;

-- Secrets that were rotated away and sign beside the present one until their time.
create table endpoint_old_secret (
    endpoint_id blob   not null,
    secret      blob   not null,
    until       bigint not null,
    primary key (endpoint_id, secret)
) without rowid;

-- One event on its way to one endpoint. Deliveries of one lane (endpoint and invoice) go out in the order of their
-- positions: only the first unfinished one is pending, the others are queued.
create table delivery (
    id             blob   not null primary key,
    endpoint_id    blob   not null,
    event_position bigint not null,
    lane           blob   not null,
    state          text   not null,
    attempts       bigint not null,
    -- of these, answers that refused it for good
    rejections     bigint not null,
    created_at     bigint not null,
    finished_at    bigint,
    dead_reason    text,
    last_status    bigint,
    last_error     text,
    -- 1 when a person sent it again, out of order
    replayed       bigint not null
) without rowid;
create index delivery_lane on delivery (lane, event_position) where state in ('queued', 'pending');
create index delivery_dead on delivery (finished_at, id) where state = 'dead';
create index delivery_finished on delivery (finished_at, state) where finished_at is not null;

-- Every attempt, append-only.
create table delivery_attempt (
    delivery_id blob   not null,
    number      bigint not null,
    started_at  bigint not null,
    ended_at    bigint not null,
    -- the status code, if one was read
    status      bigint,
    -- delivered | failed, and the class of the failure
    outcome     text   not null,
    detail      text,
    primary key (delivery_id, number)
) without rowid;

-- What happens seldom and must be counted exactly; changed in the transaction of what is counted.
create table counter (
    name  text   not null,
    label text   not null,
    value bigint not null,
    primary key (name, label)
) without rowid;
