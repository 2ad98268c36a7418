"""txoutbox 0.2 as its documentation shows it, tuned for a backlog: large claims, all keys in parallel.

Runs in .venv.peers. Its publisher waits for each record's acknowledgement, as it must before it marks the
row; aiokafka gathers those of one round into batches.
"""

import asyncio
import json
import sys
from datetime import timedelta

import asyncpg
from aiokafka import AIOKafkaProducer
from txoutbox import OutboxMessage, Relay, RelayConfig
from txoutbox.adapters.postgres import PostgresStorage

ROUND = 2_000
"""Rows claimed at a time; smaller and larger ones are slower."""


async def main(url: str, bootstrap: str) -> None:
    """Create the table, say so, carry what is in it until ended."""
    pool = await asyncpg.create_pool(url)
    storage = PostgresStorage(pool, table="txoutbox", delete_on_ack=True)
    await storage.create_schema()
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,
        acks="all",
        compression_type="lz4",
        max_batch_size=262_144,
        linger_ms=2,
    )
    await producer.start()

    async def publish(message: OutboxMessage) -> None:
        headers = [(name, str(value).encode()) for name, value in (message.headers or {}).items()]
        key = message.key.encode() if message.key else None
        await producer.send_and_wait(message.topic, message.payload, key=key, headers=headers)

    config = RelayConfig(
        batch_size=ROUND,
        concurrency=ROUND,
        lease=timedelta(seconds=60),
        publish_timeout=None,
        poll_min=0.005,
        poll_max=0.05,
    )
    print(json.dumps({"ready": True}), flush=True)
    await Relay(storage, publish, config=config).run(handle_signals=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
