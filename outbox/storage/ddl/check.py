"""Say exactly how a database differs from the schema this release needs."""

from sqlalchemy import Connection, text

from outbox.errors import SchemaError
from outbox.storage import ring
from outbox.storage.ddl.steps import STEPS, version
from outbox.storage.version import LATEST

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_attribute a
WHERE a.attrelid = to_regclass(:name) AND a.attnum > 0 AND NOT a.attisdropped
"""
_LEAVES = "SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('outbox_event')"
_CACHE = """
SELECT s.seqcache FROM pg_sequence s
WHERE s.seqrelid = pg_get_serial_sequence('outbox_event', 'position')::regclass
"""
_RLS = "SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass('outbox_event')"
_INDEXES = """
SELECT a.attname
FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = to_regclass('outbox_event') AND i.indisvalid
"""
_FUNCTION = "SELECT to_regprocedure(:signature) IS NOT NULL"
_MAY_READ_MOVER = "SELECT has_table_privilege('outbox_mover', 'SELECT')"
_MOVER = "SELECT count(*) FROM outbox_mover"
_SEAL = """
SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE t.tgname = 'outbox_seal' AND t.tgenabled IN ('O', 'A') AND t.tginitdeferred
  AND c.oid IN (to_regclass('outbox_sealed'), to_regclass('outbox_sealed_0'), to_regclass('outbox_sealed_1'))
"""

_CREATORS = """
SELECT DISTINCT quote_ident(n.nspname),
    CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(n.nspacl) a
WHERE c.oid = to_regclass('outbox_event') AND a.privilege_type = 'CREATE'
  AND a.grantee NOT IN (n.nspowner, c.relowner)
  AND NOT EXISTS (SELECT FROM pg_roles r
                  WHERE r.oid = a.grantee AND (r.rolsuper OR r.rolname = 'pg_database_owner'))
  AND EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = n.oid AND p.prosecdef)
ORDER BY 2
"""
_PLANTED = """
SELECT DISTINCT c.oid::regclass::text, coalesce(p.oid::regprocedure::text, o.oid::regoperator::text),
    quote_ident(pg_get_userbyid(coalesce(p.proowner, o.oprowner)))
FROM pg_class c
LEFT JOIN pg_attrdef f ON f.adrelid = c.oid
LEFT JOIN pg_constraint k ON k.conrelid = c.oid
LEFT JOIN pg_trigger t ON t.tgrelid = c.oid
JOIN pg_depend d ON (d.classid, d.objid) IN (
    ('pg_attrdef'::regclass, f.oid), ('pg_constraint'::regclass, k.oid), ('pg_trigger'::regclass, t.oid))
LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('outbox_event'))
  AND c.relname ~ '^(outbox|consumer)_'
  AND coalesce(p.pronamespace, o.oprnamespace) <> 'pg_catalog'::regnamespace
  AND coalesce(p.proowner, o.oprowner) <> c.relowner
  AND (EXISTS (SELECT FROM pg_proc own WHERE own.proname = p.proname
                  AND own.pronamespace = 'pg_catalog'::regnamespace)
       OR EXISTS (SELECT FROM pg_operator own WHERE own.oprname = o.oprname
                  AND own.oprnamespace = 'pg_catalog'::regnamespace))
ORDER BY 1, 2
"""


def problems(connection: Connection) -> list[str]:
    """Every difference in words, with its remedy; empty when the schema is right."""
    found = version(connection)
    if found == 0:
        return ["the outbox is not installed here; run: outbox-relay db upgrade"]
    if found < LATEST:
        return [f"schema version {found} is older than {LATEST}; run: outbox-relay db upgrade"]
    if found > LATEST:
        return [f"schema version {found} is newer than this release ({LATEST}); upgrade the program"]
    wrong = [line for step in STEPS for line in _column_problems(connection, step.COLUMNS)]
    if wrong:
        return wrong
    return _event_problems(connection) + _function_problems(connection)


def warnings(connection: Connection) -> list[str]:
    """What does not fit its purpose although the schema is right, in words, with its remedy."""
    return [
        f"{role} may CREATE in schema {schema} of the outbox: a function or operator made there can be taken "
        f"for PostgreSQL's own by statements of the relay and the services; run: REVOKE CREATE ON SCHEMA "
        f"{schema} FROM {role}"
        for schema, role in connection.execute(text(_CREATORS))
    ]


def check(connection: Connection) -> None:
    """Pass only if the schema is what this release needs. Raises SchemaError listing every difference."""
    wrong = problems(connection)
    if wrong:
        raise SchemaError("the outbox schema does not fit:\n  " + "\n  ".join(wrong))


def _column_problems(connection: Connection, tables: dict[str, dict[str, str]]) -> list[str]:
    wrong = []
    for table, columns in tables.items():
        rows = connection.execute(text(_COLUMNS), {"name": table})
        found = {str(name): str(type_) for name, type_ in rows}
        if not found:
            wrong.append(f"table {table} is missing; restore it, or make it as `db sql` prints it")
            continue
        for column, type_ in columns.items():
            if column not in found:
                wrong.append(f"column {table}.{column} ({type_}) is missing; add it as `db sql` prints it")
            elif found[column] != type_:
                wrong.append(f"column {table}.{column} is {found[column]}, it must be {type_}")
    return wrong


def _event_problems(connection: Connection) -> list[str]:
    wrong = [
        f"table {table} calls {routine} of role {role}, which stood in the schema when the table was made; "
        "make its defaults, constraints and triggers anew, as `db sql` prints them"
        for table, routine, role in connection.execute(text(_PLANTED))
    ]
    leaves = connection.scalar(text(_LEAVES))
    if leaves != ring.LEAVES:
        wrong.append(f"outbox_event has {leaves} partitions, it must have {ring.LEAVES}")
    cache = connection.scalar(text(_CACHE))
    if cache != 1:
        wrong.append(
            f"the sequence of outbox_event.position caches {cache} numbers, which breaks the order of "
            "events; run: ALTER TABLE outbox_event ALTER COLUMN position SET CACHE 1"
        )
    if connection.scalar(text(_RLS)):
        wrong.append(
            "row-level security is enabled on outbox_event and would hide events from the relay; run: "
            "ALTER TABLE outbox_event DISABLE ROW LEVEL SECURITY"
        )
    indexed = {str(name) for (name,) in connection.execute(text(_INDEXES))}
    wrong += [
        f"outbox_event has no valid index on {column}; run: CREATE INDEX ON outbox_event ({column})"
        for column in ("xid", "position")
        if column not in indexed
    ]
    return wrong


def _function_problems(connection: Connection) -> list[str]:
    wrong = [
        f"function {signature} is missing; make it as `db sql` prints it"
        for step in STEPS
        for signature in getattr(step, "FUNCTIONS", ())
        if not connection.scalar(text(_FUNCTION), {"signature": signature})
    ]
    # Consumers and relays compare the schema too, and have no business with this table.
    if connection.scalar(text(_MAY_READ_MOVER)) and connection.scalar(text(_MOVER)) != 1:
        wrong.append(
            "the one row of outbox_mover is missing, so no scheduled event would ever leave; run: "
            "INSERT INTO outbox_mover DEFAULT VALUES"
        )
    if connection.scalar(text(_SEAL)) != 3:
        wrong.append(
            "trigger outbox_seal is missing or disabled, so sealed events would be lost; run: "
            "ALTER TABLE outbox_sealed ENABLE TRIGGER outbox_seal, or make it as `db sql` prints it"
        )
    return wrong
