"""The tables of the predecessor of this package, and how what is in them comes over into ours: as SQL, for both databases.

It had four tables of our names and kept no version. They are put aside, ours are made, their rows are copied by four statements, and
they are dropped, all within the migration's transaction. `versions/v0001` runs this, so it writes the schema of 0001 for good: later
versions change what has come over like everything else. What becomes of odd rows is told in docs/migrations.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import frozen

__all__ = ["COLUMNS", "carry_over", "put_aside", "unreadable_times"]

COLUMNS = {
    "threads": "id worker_id organization_id workspace_id user_id title created_at updated_at last_event_at",
    "events": "id thread_id run_id type actor author user_id user_name user_email content data created_at",
    "runs": "id thread_id agent_id status started_at ended_at error",
    "settings": "worker_id values created_at updated_at",
}

# Whose events and runs are of a thread that is not there. A word of its own and not "": that may be somebody's organization.
NOBODY = "'orphaned'"


@frozen
class _Words:
    """What the two databases say differently. Functions take SQL expressions and give one."""

    time: Callable[[str], str]
    content: Callable[[str], str]
    data: Callable[[str], str]
    is_error: str
    first_text: str
    object: str
    no_list: str
    epoch: str
    binary: str
    setting: str
    settings: str


def put_aside(prefix: str, dialect: str) -> Iterator[str]:
    """Give the predecessor's tables other names."""
    if dialect == "postgresql":
        # Their constraints and indexes too, as ours are to have the names they have everywhere.
        tables = ", ".join(f"'\"{prefix}{table}\"'" for table in COLUMNS)
        yield f"""
DO $$ DECLARE
    theirs regclass[] = ARRAY[{tables}];
    one record;
BEGIN
    FOR one IN SELECT oid, conname, conrelid FROM pg_constraint WHERE conrelid = ANY (theirs) LOOP
        EXECUTE 'ALTER TABLE ' || CAST(one.conrelid AS regclass) || ' RENAME CONSTRAINT ' || quote_ident(one.conname)
            || ' TO dooers_aside_' || one.oid;
    END LOOP;
    FOR one IN SELECT indexrelid FROM pg_index WHERE indrelid = ANY (theirs) LOOP
        EXECUTE 'ALTER INDEX ' || CAST(one.indexrelid AS regclass) || ' RENAME TO dooers_aside_' || one.indexrelid;
    END LOOP;
END $$"""
        # Times without a zone, where there are any, are UTC.
        yield "SELECT set_config('timezone', 'UTC', true)"
    for table in COLUMNS:
        yield f'ALTER TABLE "{prefix}{table}" RENAME TO "{prefix}{table}_aside"'


def carry_over(prefix: str, dialect: str) -> Iterator[str]:
    """Copy what was put aside into the tables of 0001, and drop it."""
    words = _WORDS[dialect]
    yield _threads(prefix, words)
    yield _events(prefix, words)
    yield _runs(prefix, words)
    yield _settings(prefix, words)
    for table in ("events", "runs", "settings", "threads"):
        yield f'DROP TABLE "{prefix}{table}_aside"'
    if dialect == "postgresql":
        # Nobody would have looked at the new tables before the first messages come.
        yield "ANALYZE " + ", ".join(f'"{prefix}{table}"' for table in COLUMNS)


def unreadable_times(prefix: str) -> str:
    """A query for the first time in the predecessor's SQLite tables that is none: what it is, and where."""
    time = _WORDS["sqlite"].time
    looks = [
        f"SELECT '{prefix}{table}' AS place, {key} AS id, '{name}' AS name, {name} AS value FROM \"{prefix}{table}\" "
        f"WHERE {name} <> '' AND {time(name)} IS NULL"
        for table, columns in COLUMNS.items()
        for key in [columns.split()[0]]
        for name in columns.split()
        if name.endswith("_at")
    ]
    return f"{' UNION ALL '.join(looks)} LIMIT 1"


# ---------------------------------------------------------------- the four statements


def _text(column: str) -> str:
    return f"CAST({column} AS TEXT)"


def _of_thread(column: str) -> str:
    # A text by declaration: else SQLite would not look it up in an index of texts.
    return _text(f"coalesce({_text(column)}, {NOBODY})")


def _person(words: _Words, user_id: str, name: str, email: str) -> str:
    """A user as `codec.plain_user` has them."""
    pairs = {"user_id": user_id, "user_name": name, "user_email": email}
    values = {key: f"coalesce({_text(value)}, '')" for key, value in pairs.items()}
    values |= {"user_role": "''", "identity_ids": words.no_list}
    values |= dict.fromkeys(("system_role", "organization_role", "workspace_role"), "''")
    listed = ", ".join(f"'{key}', {value}" for key, value in values.items())
    return f"{words.object}({listed})"


def _threads(prefix: str, words: _Words) -> str:
    """A row for each thread, and for each that events or runs speak of. The owner's name is on the first message of theirs.

    MATERIALIZED, here and below: SQLite makes an index to join by of what is, and of what is not it joins each row with each.
    """
    time = words.time
    return f"""
INSERT INTO "{prefix}threads" (id, worker_id, organization_id, workspace_id, user_id, owner, title, created_at, updated_at,
    last_event_at, last_seq)
WITH kept AS MATERIALIZED (
    SELECT {_text("id")} AS id, worker_id, organization_id, workspace_id, coalesce({_text("user_id")}, '') AS user_id, title,
        {time("created_at")} AS created_at, {time("updated_at")} AS updated_at, {time("last_event_at")} AS last_event_at
    FROM "{prefix}threads_aside"
), said AS MATERIALIZED (
    SELECT {_text("id")} AS id, {_of_thread("thread_id")} AS thread_id, {_text("user_id")} AS user_id, user_name, user_email,
        {time("created_at")} AS created_at
    FROM "{prefix}events_aside"
), told AS MATERIALIZED (
    SELECT thread_id, count(*) AS count, min(created_at) AS first_at, max(created_at) AS last_at FROM said GROUP BY thread_id
), named AS MATERIALIZED (
    SELECT thread_id, user_id, user_name, user_email,
        row_number() OVER (PARTITION BY thread_id, user_id ORDER BY created_at, id{words.binary}) AS n
    FROM said WHERE user_id <> '' AND (user_name <> '' OR user_email <> '')
), ran AS MATERIALIZED (
    SELECT {_of_thread("thread_id")} AS thread_id, min({time("started_at")}) AS first_at, max({time("started_at")}) AS last_at
    FROM "{prefix}runs_aside" GROUP BY {_of_thread("thread_id")}
), ids AS (
    SELECT id FROM kept UNION SELECT thread_id FROM told UNION SELECT thread_id FROM ran
)
SELECT ids.id, {", ".join(_place(name) for name in ("worker_id", "organization_id", "workspace_id"))},
    coalesce(kept.user_id, ''), {_person(words, "kept.user_id", "named.user_name", "named.user_email")}, kept.title,
    coalesce(kept.created_at, told.first_at, ran.first_at, kept.updated_at, {words.epoch}),
    coalesce(kept.updated_at, told.last_at, ran.last_at, kept.created_at, {words.epoch}),
    coalesce(kept.last_event_at, told.last_at, kept.updated_at, ran.last_at, kept.created_at, {words.epoch}),
    coalesce(told.count, 0)
FROM ids LEFT JOIN kept ON kept.id = ids.id LEFT JOIN told ON told.thread_id = ids.id LEFT JOIN ran ON ran.thread_id = ids.id
    LEFT JOIN named ON named.thread_id = ids.id AND named.user_id = kept.user_id AND named.n = 1
"""


def _place(column: str) -> str:
    return f"CASE WHEN kept.id IS NULL THEN {NOBODY} ELSE coalesce({_text(f'kept.{column}')}, '') END"


def _events(prefix: str, words: _Words) -> str:
    """Numbered by time, then id; each belongs to the turn of the last message of a user before it. So a model reads them in order."""
    who = "user_id <> '' OR user_name <> '' OR user_email <> ''"
    return f"""
INSERT INTO "{prefix}events" (id, thread_id, seq, turn_seq, type, actor, author, user_id, sender, content, data, run_id, notice,
    created_at)
WITH failed AS MATERIALIZED (
    SELECT {_text("id")} AS failed_id, error FROM "{prefix}runs_aside" WHERE error IS NOT NULL
)
SELECT id, thread_id, seq,
    coalesce(max(CASE WHEN type = 'message' AND actor = 'user' THEN seq END)
        OVER (PARTITION BY thread_id ORDER BY seq ROWS UNBOUNDED PRECEDING), seq),
    type, actor, author, CASE WHEN {who} THEN coalesce(user_id, '') END,
    CASE WHEN {who} THEN {_person(words, "user_id", "user_name", "user_email")} END,
    {words.content("content")}, {words.data("data")}, run_id,
    CASE WHEN type = 'message' AND actor = 'system' AND ({words.is_error} OR failed.error = {words.first_text})
        THEN 1 ELSE 0 END, created_at
FROM (
    SELECT *, row_number() OVER (PARTITION BY thread_id ORDER BY created_at, id{words.binary}) AS seq
    FROM (
        SELECT {_text("id")} AS id, {_of_thread("thread_id")} AS thread_id, coalesce({_text("type")}, 'message') AS type,
            coalesce({_text("actor")}, 'system') AS actor, author, {_text("user_id")} AS user_id, user_name, user_email, content, data,
            {_text("run_id")} AS run_id, coalesce({words.time("created_at")}, {words.epoch}) AS created_at
        FROM "{prefix}events_aside"
    ) AS stored
) AS e LEFT JOIN failed ON failed.failed_id = e.run_id
"""


def _runs(prefix: str, words: _Words) -> str:
    """Words for how a run ended that nobody knows stay what they are: whoever wrote them may. What was running has nobody at it."""
    started, ended = words.time("started_at"), words.time("ended_at")
    return f"""
INSERT INTO "{prefix}runs" (id, thread_id, agent_id, status, started_at, ended_at, error)
SELECT {_text("id")}, {_of_thread("thread_id")}, {_text("agent_id")},
    CASE {_text("status")} WHEN 'cancelled' THEN 'canceled' WHEN 'running' THEN 'failed'
        ELSE coalesce({_text("status")}, 'failed') END,
    coalesce({started}, {ended}, {words.epoch}), {ended}, error
FROM "{prefix}runs_aside"
"""


def _settings(prefix: str, words: _Words) -> str:
    """A row for each field."""
    changed = f"coalesce({words.time('updated_at')}, {words.time('created_at')}, {words.epoch})"
    return f"""
INSERT INTO "{prefix}settings" (worker_id, field_id, value, updated_at)
SELECT coalesce({_text("worker_id")}, ''), f.key, {words.setting}, {changed}
FROM (SELECT worker_id, created_at, updated_at, {words.settings} AS fields FROM "{prefix}settings_aside") AS s
    CROSS JOIN {"jsonb_each" if words.object.startswith("jsonb") else "json_each"}(s.fields) AS f
"""


# ---------------------------------------------------------------- PostgreSQL


def _postgres_content(column: str) -> str:
    """The parts of a message, each as `codec.parts` can read it: what it cannot is a text, of itself."""

    def may_be(name: str, kind: str) -> str:
        return f"coalesce(jsonb_typeof(p.part -> '{name}'), 'null') IN ('null', '{kind}')"

    def whole(name: str) -> str:
        return f"({may_be(name, 'number')} AND coalesce(p.part ->> '{name}', '0') NOT LIKE '%.%')"

    is_url = "jsonb_typeof(p.part -> 'url') = 'string'"
    json = f"CAST({column} AS JSONB)"
    return f"""(SELECT coalesce(jsonb_agg(CASE
        WHEN jsonb_typeof(p.part) = 'string' THEN jsonb_build_object('type', 'text', 'text', p.part)
        WHEN p.part ->> 'type' = 'text' AND jsonb_typeof(p.part -> 'text') = 'string' THEN p.part
        WHEN p.part ->> 'type' = 'image' AND {is_url} AND {may_be("mime_type", "string")} AND {may_be("alt", "string")}
            AND {whole("width")} AND {whole("height")} THEN p.part
        WHEN p.part ->> 'type' = 'document' AND {is_url} AND {may_be("mime_type", "string")}
            AND {may_be("filename", "string")} AND {whole("size_bytes")}
            THEN p.part || jsonb_build_object('filename', coalesce(p.part ->> 'filename', 'document'),
                'mime_type', coalesce(p.part ->> 'mime_type', 'application/octet-stream'))
        ELSE jsonb_build_object('type', 'text', 'text', CAST(p.part AS TEXT)) END ORDER BY p.n), '[]')
    FROM jsonb_array_elements(CASE coalesce(jsonb_typeof({json}), 'null') WHEN 'array' THEN {json} WHEN 'null' THEN '[]'
        ELSE jsonb_build_array({json}) END) WITH ORDINALITY AS p (part, n))"""


def _postgres_data(column: str) -> str:
    json = f"CAST({column} AS JSONB)"
    return (
        f"CASE jsonb_typeof({json}) WHEN 'object' THEN {json} WHEN 'null' THEN NULL "
        f"ELSE jsonb_build_object('value', {json}) END"
    )


_FIELDS = 'CAST("values" AS JSONB)'
_POSTGRES = _Words(
    time=lambda column: f"CAST({column} AS TIMESTAMPTZ)",
    content=_postgres_content,
    # Null is neither of the kinds, and an object of nothing is nothing.
    data=lambda column: f"CASE WHEN {column} IS NOT NULL THEN {_postgres_data(column)} END",
    is_error="CAST(data AS JSONB) ->> 'error' = 'true'",
    first_text="CAST(content AS JSONB) -> 0 ->> 'text'",
    object="jsonb_build_object",
    no_list="CAST('[]' AS JSONB)",
    epoch="CAST('1970-01-01 00:00+00' AS TIMESTAMPTZ)",
    binary=' COLLATE "C"',
    setting="f.value",
    settings=(
        f"CASE coalesce(jsonb_typeof({_FIELDS}), 'null') WHEN 'object' THEN {_FIELDS} WHEN 'null' THEN '{{}}' "
        f"ELSE jsonb_build_object('values', {_FIELDS}) END"
    ),
)


# ---------------------------------------------------------------- SQLite


def _sqlite_time(column: str) -> str:
    """What `datetime.isoformat` writes, in all its ways, as `rows.stamp` does. NULL for what is no time.

    SQLite's own functions keep three digits of a second, so its fraction goes round them.
    """
    zone = f"ltrim(substr({column}, 20), '.,0123456789')"
    fraction = f"ltrim(substr({column}, 20, length({column}) - 19 - length({zone})), '.,')"
    # +0200 and +02 are +02:00.
    colon = (
        f"CASE length({zone}) WHEN 5 THEN substr({zone}, 1, 3) || ':' || substr({zone}, 4) WHEN 3 THEN {zone} || ':00' "
        f"ELSE {zone} END"
    )
    return (
        f"CASE WHEN {column} GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*' THEN "
        f"strftime('%Y-%m-%dT%H:%M:%S', substr({column}, 1, 19) || {colon}) || '.' || "
        f"substr({fraction} || '000000', 1, 6) || '+00:00' END"
    )


def _sqlite_content(column: str) -> str:
    """The same. `|| ''` makes JSON a plain text: SQLite remembers where a value came from, and would put it in as JSON."""

    def may_be(name: str, kind: str) -> str:
        return f"coalesce(json_type(p.value, '$.{name}'), 'null') IN ('null', '{kind}')"

    def is_a(kind: str) -> str:
        return f"json_extract(p.value, '$.type') = '{kind}'"

    is_url = "json_type(p.value, '$.url') = 'text'"
    return f"""(SELECT json_group_array(json(CASE
        WHEN p.type = 'text' THEN json_object('type', 'text', 'text', p.value)
        WHEN p.type <> 'object' THEN json_object('type', 'text', 'text', {_sqlite_json("p")} || '')
        WHEN {is_a("text")} AND json_type(p.value, '$.text') = 'text' THEN p.value
        WHEN {is_a("image")} AND {is_url} AND {may_be("mime_type", "text")} AND {may_be("alt", "text")}
            AND {may_be("width", "integer")} AND {may_be("height", "integer")} THEN p.value
        WHEN {is_a("document")} AND {is_url} AND {may_be("mime_type", "text")} AND {may_be("filename", "text")}
            AND {may_be("size_bytes", "integer")}
            THEN json_set(p.value, '$.filename', coalesce(json_extract(p.value, '$.filename'), 'document'),
                '$.mime_type', coalesce(json_extract(p.value, '$.mime_type'), 'application/octet-stream'))
        ELSE json_object('type', 'text', 'text', p.value || '') END))
    FROM json_each(CASE WHEN coalesce({column}, '') = '' THEN '[]'
        WHEN NOT json_valid({column}) THEN json_array({column})
        WHEN json_type({column}) = 'array' THEN {column}
        WHEN json_type({column}) = 'null' THEN '[]'
        ELSE json_array(json({column})) END) AS p)"""


def _sqlite_json(each: str) -> str:
    """A value of json_each as JSON again. SQLite by itself writes numbers with fifteen digits, two too few."""
    return (
        f"CASE {each}.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' WHEN 'null' THEN 'null' "
        f"WHEN 'object' THEN {each}.value WHEN 'array' THEN {each}.value WHEN 'real' THEN printf('%!.17g', {each}.value) "
        f"ELSE json_quote({each}.value) END"
    )


_SQLITE = _Words(
    time=_sqlite_time,
    content=_sqlite_content,
    data=lambda column: (
        f"CASE WHEN coalesce({column}, '') = '' THEN NULL WHEN NOT json_valid({column}) THEN json_object('value', {column}) "
        f"WHEN json_type({column}) = 'object' THEN {column} WHEN json_type({column}) = 'null' THEN NULL "
        f"ELSE json_object('value', json({column})) END"
    ),
    is_error="(json_valid(data) AND json_type(data, '$.error') = 'true')",
    first_text="CASE WHEN json_valid(content) THEN json_extract(content, '$[0].text') END",
    object="json_object",
    no_list="json('[]')",
    epoch="'1970-01-01T00:00:00.000000+00:00'",
    binary="",
    setting=_sqlite_json("f"),
    settings=(
        "CASE WHEN coalesce(\"values\", '') = '' THEN '{}' WHEN NOT json_valid(\"values\") THEN json_object('values', \"values\") "
        "WHEN json_type(\"values\") = 'object' THEN \"values\" WHEN json_type(\"values\") = 'null' THEN '{}' "
        "ELSE json_object('values', json(\"values\")) END"
    ),
)

_WORDS = {"postgresql": _POSTGRES, "sqlite": _SQLITE}
