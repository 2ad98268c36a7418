"""librdkafka's mock cluster as a program: `python -m outbox.testing.servers.mock_kafka [brokers]`.

It prints its address as the first line, then answers one line for each line it reads, and ends when its
input does, hence with whoever started it:

    topic NAME PARTITIONS      create a topic, which nobody else can here
    down BROKER | up BROKER    lose a broker (from 1), get it back

It needs Python only. It is no judge of exactly-once: it shows aborted records, fences no producer, keeps
about 5 MB a partition and forgets what came before.
"""

import ctypes
import sys
from pathlib import Path

import confluent_kafka

PRODUCER = 0
OK = 0


def load() -> ctypes.CDLL:
    """The librdkafka inside the confluent-kafka wheel, whose mock has no Python binding."""
    package = Path(confluent_kafka.__file__).parent
    found = [*package.parent.glob("confluent_kafka.libs/librdkafka*"), *package.glob(".dylibs/librdkafka*")]
    if not found:
        raise SystemExit(
            f"no librdkafka was found beside {package}; install confluent-kafka from a wheel, "
            "or use a real broker"
        )
    library = ctypes.CDLL(str(found[0]))
    handle, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("rd_kafka_conf_new", handle, []),
        ("rd_kafka_conf_set", number, [handle, text, text, text, ctypes.c_size_t]),
        ("rd_kafka_new", handle, [number, handle, text, ctypes.c_size_t]),
        ("rd_kafka_mock_cluster_new", handle, [handle, number]),
        ("rd_kafka_mock_cluster_bootstraps", text, [handle]),
        ("rd_kafka_mock_topic_create", number, [handle, text, number, number]),
        ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [handle, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_down", number, [handle, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", number, [handle, ctypes.c_int32]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Cluster:
    """The mock cluster inside this process."""

    def __init__(self, brokers: int) -> None:
        self._library = load()
        self._brokers = brokers
        error = ctypes.create_string_buffer(512)
        configuration = self._library.rd_kafka_conf_new()
        client = self._library.rd_kafka_new(PRODUCER, configuration, error, len(error))
        self._cluster = self._library.rd_kafka_mock_cluster_new(client, brokers) if client else None
        if not self._cluster:
            raise SystemExit(f"librdkafka did not start its mock cluster: {error.value.decode()}")
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)

    @property
    def bootstrap(self) -> str:
        """Where clients of any process reach it."""
        address: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return address.decode()

    def answer(self, line: str) -> str:
        """Do what one line says."""
        match line.split():
            case ["topic", name, partitions]:
                code = self._library.rd_kafka_mock_topic_create(
                    self._cluster, name.encode(), int(partitions), self._brokers
                )
            case ["down", broker]:
                code = self._library.rd_kafka_mock_broker_set_down(self._cluster, int(broker))
            case ["up", broker]:
                code = self._library.rd_kafka_mock_broker_set_up(self._cluster, int(broker))
            case _:
                return f"unknown command: {line}"
        return "ok" if code == OK else confluent_kafka.KafkaError(code).str()


def main() -> None:
    """Serve until the end of the input."""
    cluster = Cluster(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    sys.stdout.write(f"{cluster.bootstrap}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(f"{cluster.answer(line.strip())}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
