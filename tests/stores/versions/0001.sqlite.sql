CREATE TABLE worker_schema_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT worker_schema_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE worker_threads (
    id TEXT NOT NULL,
    worker_id TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    title TEXT,
    metadata TEXT,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    last_event_at TEXT NOT NULL,
    last_seq BIGINT NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX worker_threads_recent ON worker_threads (worker_id, organization_id, workspace_id, last_event_at, id);
CREATE INDEX worker_threads_recent_of_user ON worker_threads (worker_id, organization_id, workspace_id, user_id, last_event_at, id);
CREATE TABLE worker_events (
    id TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    turn_seq BIGINT NOT NULL,
    type TEXT NOT NULL,
    actor TEXT NOT NULL,
    author TEXT,
    user_id TEXT,
    sender TEXT,
    content TEXT NOT NULL,
    data TEXT,
    run_id TEXT,
    client_event_id TEXT,
    repeat_key TEXT,
    notice SMALLINT NOT NULL,
    created_at TEXT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(thread_id) REFERENCES worker_threads (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX worker_events_order ON worker_events (thread_id, seq);
CREATE UNIQUE INDEX worker_events_repeat ON worker_events (repeat_key);
CREATE TABLE worker_runs (
    id TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    agent_id TEXT,
    status TEXT NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    error TEXT,
    PRIMARY KEY (id),
    FOREIGN KEY(thread_id) REFERENCES worker_threads (id) ON DELETE CASCADE
);
CREATE INDEX worker_runs_of_thread ON worker_runs (thread_id, status, started_at, id);
CREATE TABLE worker_settings (
    worker_id TEXT NOT NULL,
    field_id TEXT NOT NULL,
    value TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    PRIMARY KEY (worker_id, field_id)
);
INSERT INTO worker_schema_version (version_num) VALUES ('0001') RETURNING version_num;
