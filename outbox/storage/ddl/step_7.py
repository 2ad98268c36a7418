"""Step 7, frozen once released: a replay that sends only the latest event of each key."""

UP: tuple[str, ...] = ("ALTER TABLE outbox_job ADD COLUMN latest_per_key boolean NOT NULL DEFAULT false",)

DOWN: tuple[str, ...] = ("ALTER TABLE outbox_job DROP COLUMN latest_per_key",)

COLUMNS: dict[str, dict[str, str]] = {"outbox_job": {"latest_per_key": "boolean"}}
