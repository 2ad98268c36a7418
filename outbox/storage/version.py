"""The schema version that this release needs; a module of its own, because the relay knows no SQLAlchemy."""

LATEST = 9
