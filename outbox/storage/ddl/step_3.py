"""Step 3, frozen once released: parked rows and the jobs that send them again."""

UP: tuple[str, ...] = ("ALTER TABLE outbox_shard ADD COLUMN job bigint",)

DOWN: tuple[str, ...] = ("ALTER TABLE outbox_shard DROP COLUMN job",)

COLUMNS: dict[str, dict[str, str]] = {"outbox_shard": {"job": "bigint"}}
