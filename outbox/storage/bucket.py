"""All agree which of 256 buckets a key belongs to: PostgreSQL computes it, nobody else."""

BUCKETS = 256

BUCKET_SQL = "coalesce(hashtextextended(aggregateid, 0) & 255, 0)"
"""Bucket of a row at read time (55 ns a row). A NULL key is in bucket 0."""

IN_SHARD = f"{BUCKET_SQL.replace('aggregateid', 'e.aggregateid')} BETWEEN s.lo AND s.hi"
"""Is event `e` one of shard `s`? For statements that ask about several shards at once."""

OF_EVERY_BUCKET = "/* of every bucket */"
"""Stands in a statement where one shard of several asks for its own buckets."""


def of_buckets(statement: str) -> str:
    """`statement` for one shard of several: only rows of the buckets `lo` to `hi`, two more parameters."""
    return statement.replace(OF_EVERY_BUCKET, f"AND {BUCKET_SQL} BETWEEN %(lo)s AND %(hi)s")
