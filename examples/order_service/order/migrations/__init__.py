"""The history of this database: an ordinary Alembic environment."""
