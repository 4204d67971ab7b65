-- +goose Up

-- Every resource of every kind. Times are microseconds since 1970, UTC.
CREATE TABLE resource (
    kind      TEXT    NOT NULL,
    workspace TEXT    NOT NULL, -- '' for the hub's own
    parent    TEXT    NOT NULL, -- '' for none
    id        TEXT    NOT NULL,
    name      TEXT    NOT NULL, -- '' for none
    revision  BIGINT  NOT NULL,
    created   BIGINT  NOT NULL,
    updated   BIGINT  NOT NULL,
    doc       TEXT    NOT NULL, -- a JSON object
    PRIMARY KEY (kind, id)
);
CREATE UNIQUE INDEX resource_name ON resource (kind, workspace, parent, name) WHERE name <> '';
CREATE INDEX resource_page ON resource (kind, workspace, id);

-- What a resource points at: a resource's id, a digest. Targets need not exist.
CREATE TABLE ref (
    kind   TEXT NOT NULL,
    id     TEXT NOT NULL,
    rel    TEXT NOT NULL,
    target TEXT NOT NULL,
    PRIMARY KEY (kind, id, rel, target)
);
CREATE INDEX ref_target ON ref (rel, target, kind, id);

-- The outbox: one row for each change to a resource.
CREATE TABLE event (
    sequence  BIGINT NOT NULL PRIMARY KEY,
    time      BIGINT NOT NULL,
    workspace TEXT   NOT NULL,
    kind      TEXT   NOT NULL,
    id        TEXT   NOT NULL,
    name      TEXT   NOT NULL,
    change    TEXT   NOT NULL,
    revision  BIGINT NOT NULL,
    actor     TEXT   NOT NULL,
    request   TEXT   NOT NULL,
    resource  TEXT   NOT NULL  -- a JSON object; '' for none
);
CREATE INDEX event_workspace ON event (workspace, sequence);
CREATE INDEX event_resource ON event (kind, id, sequence);

CREATE TABLE audit (
    sequence  BIGINT  NOT NULL PRIMARY KEY,
    time      BIGINT  NOT NULL,
    workspace TEXT    NOT NULL,
    actor     TEXT    NOT NULL,
    verb      TEXT    NOT NULL,
    kind      TEXT    NOT NULL,
    object    TEXT    NOT NULL,
    allowed   BOOLEAN NOT NULL,
    why       TEXT    NOT NULL,
    request   TEXT    NOT NULL
);
CREATE INDEX audit_workspace ON audit (workspace, sequence);

-- Answers to requests that carried an idempotency key.
CREATE TABLE answer (
    actor   TEXT   NOT NULL,
    key     TEXT   NOT NULL,
    request TEXT   NOT NULL,
    status  BIGINT NOT NULL,
    header  TEXT   NOT NULL,
    body    BLOB   NOT NULL,
    expires BIGINT NOT NULL,
    PRIMARY KEY (actor, key)
);
CREATE INDEX answer_expires ON answer (expires);
