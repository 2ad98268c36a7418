"""Bind functions that run with the owner's rights to the owner's tables and PostgreSQL's own functions.

In a schema on the search path, even behind pg_catalog, whoever may CREATE there can plant a function or an
operator that fits its arguments more exactly than PostgreSQL's own and is therefore called. So the path holds
pg_catalog alone, and every name of ours in a body is qualified when the function is made.
"""

from collections.abc import Sequence

HERE = "'outbox_schema_of_ours'"
"""Stands in a body for the quoted name of the schema, as a text."""

_PIN = """
DO $do$
DECLARE
    name text;
    ours text := pg_catalog.quote_ident(current_schema()::text);
    definition text;
    body text;
BEGIN
    FOREACH name IN ARRAY ARRAY{names}::text[]
    LOOP
        SELECT pg_catalog.pg_get_functiondef(oid), prosrc INTO STRICT definition, body
            FROM pg_catalog.pg_proc WHERE oid = name::regprocedure::oid;
        EXECUTE pg_catalog.replace(definition, body, pg_catalog.regexp_replace(
            pg_catalog.replace(body, {here}, pg_catalog.quote_literal(ours)),
            '(?<![.''"])[[:<:]]{prefix}_(?=[a-z])',
            pg_catalog.replace(ours, '{backslash}', '{backslash}{backslash}') || '.{prefix}_'::text, 'g'));
        EXECUTE 'ALTER FUNCTION '::text || name || ' SET search_path = pg_catalog, pg_temp'::text;
        {revoke}
    END LOOP;
END $do$
"""

_REVOKE = "EXECUTE 'REVOKE ALL ON FUNCTION '::text || name || ' FROM PUBLIC'::text;"


def pinned(names: Sequence[str], *, public: bool = False, prefix: str = "outbox") -> str:
    """The statement that does so to functions just made in the current schema.

    `public`: everybody may run them, as what they do is done with the caller's rights. `prefix`: how the
    names of ours begin that their bodies mention.
    """
    return _PIN.format(
        names=[*names],
        here="'" + HERE.replace("'", "''") + "'",
        backslash="\\",
        prefix=prefix,
        revoke="" if public else _REVOKE,
    )
