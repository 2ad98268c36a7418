"""Transactional outbox and exactly-once consumer for SQLAlchemy, PostgreSQL and Kafka."""

from outbox.storage import ddl, roles, tables

__all__ = ["ddl", "roles", "tables"]
