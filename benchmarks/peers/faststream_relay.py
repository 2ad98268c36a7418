"""faststream-outbox as its documentation shows it, tuned: large fetches, many workers, few flushes.

Runs in .venv.peers. The subscriber reads rows of one queue and publishes each to Kafka with FastStream's
broker for confluent-kafka, which waits for the acknowledgement.
"""

import asyncio
import json
import sys

from faststream.confluent import KafkaBroker
from faststream_outbox import OutboxBroker, make_outbox_table
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

WORKERS = 64
FETCH = 500


async def main(url: str, bootstrap: str, topic: str) -> None:
    """Create the table, say so, carry what is in it until ended."""
    metadata = MetaData()
    table = make_outbox_table(metadata, table_name="faststream_outbox")
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://", 1), pool_size=WORKERS + 8, max_overflow=0
    )
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    kafka = KafkaBroker(
        bootstrap, enable_idempotence=True, acks="all", compression_type="lz4", linger_ms=2, logger=None
    )
    outbox = OutboxBroker(engine, outbox_table=table, logger=None)

    async def relay(body: bytes) -> None:
        await kafka.publish(body, topic, key=body[13:49])

    outbox.subscriber(
        "orders",
        max_workers=WORKERS,
        fetch_batch_size=FETCH,
        min_fetch_interval=0.005,
        max_fetch_interval=0.05,
        terminal_flush_batch_size=100,
    )(relay)
    await kafka.start()
    await outbox.start()
    print(json.dumps({"ready": True}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3]))
