"""Step 9, frozen once released: a group's place can be moved, and the row says why."""

UP: tuple[str, ...] = (
    """
ALTER TABLE consumer_offset
    ADD COLUMN run_up     bigint CHECK (run_up >= -1),
    ADD COLUMN moves      bigint NOT NULL DEFAULT 0,
    ADD COLUMN moved_at   timestamptz,
    ADD COLUMN moved_by   text,
    ADD COLUMN moved_why  text,
    ADD COLUMN moved_from bigint,
    ADD COLUMN moved_to   bigint,
    ADD COLUMN partitions integer,
    ADD COLUMN retired    text
""",
)

DOWN: tuple[str, ...] = (
    """
ALTER TABLE consumer_offset
    DROP COLUMN run_up, DROP COLUMN moves, DROP COLUMN moved_at, DROP COLUMN moved_by, DROP COLUMN moved_why,
    DROP COLUMN moved_from, DROP COLUMN moved_to, DROP COLUMN partitions, DROP COLUMN retired
""",
)

COLUMNS: dict[str, dict[str, str]] = {
    "consumer_offset": {
        "run_up": "bigint",
        "moves": "bigint",
        "moved_at": "timestamp with time zone",
        "moved_by": "text",
        "moved_why": "text",
        "moved_from": "bigint",
        "moved_to": "bigint",
        "partitions": "integer",
        "retired": "text",
    },
}
