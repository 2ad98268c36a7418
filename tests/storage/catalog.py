"""What a database holds, as values that can be compared."""

from sqlalchemy import Connection, text

_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
    pg_get_expr(d.adbin, d.adrelid), coll.collname
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
LEFT JOIN pg_collation coll ON coll.oid = a.attcollation
WHERE c.relnamespace = 'public'::regnamespace
ORDER BY 1, a.attnum
"""
_RELATIONS = """
SELECT relname, relkind::text, relpersistence::text, array_to_string(reloptions, ' '),
    pg_get_expr(relpartbound, oid)
FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1
"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
_CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2
"""
_FUNCTIONS = """
SELECT oid::regprocedure::text, prosecdef, proconfig::text, proacl::text FROM pg_proc
WHERE pronamespace = 'public'::regnamespace ORDER BY 1
"""
_TRIGGERS = """
SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2
"""


def contents(connection: Connection, *, without: str = "") -> dict[str, list[tuple[object, ...]]]:
    """All that schema public holds, but those whose name begins so."""
    parts = {
        "columns": _COLUMNS,
        "relations": _RELATIONS,
        "indexes": _INDEXES,
        "constraints": _CONSTRAINTS,
        "functions": _FUNCTIONS,
        "triggers": _TRIGGERS,
    }
    return {
        part: [
            tuple(row)
            for row in connection.execute(text(sql))
            if not without or not str(row[0]).startswith(without)
        ]
        for part, sql in parts.items()
    }
