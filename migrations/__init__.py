"""Our own Alembic environment: it calls `outbox.ddl` exactly as a user's revision does."""
