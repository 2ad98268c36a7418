"""All agree which of 256 buckets a key belongs to: PostgreSQL computes it, nobody else."""

BUCKETS = 256

BUCKET_SQL = "coalesce(hashtextextended(aggregateid, 0) & 255, 0)"
"""Bucket of a row at read time (55 ns a row). A NULL key is in bucket 0."""
