"""Start before the servers do: wait for them and say so; refuse at once what no waiting can mend."""

import logging
import time
from collections.abc import Iterable

from confluent_kafka import KafkaException
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from outbox.consumer import backoff
from outbox.consumer.assignment import describe
from outbox.consumer.database import Database
from outbox.consumer.identity import MOCK, Identities, TopicIdentity, TopicMissing
from outbox.consumer.notice import Notice
from outbox.consumer.outcome import sqlstate
from outbox.consumer.stopping import Stop
from outbox.errors import ConfigurationError, SchemaError
from outbox.storage import ddl

log = logging.getLogger(__name__)

RIGHTS = text("""
SELECT has_table_privilege('consumer_offset', 'SELECT')
   AND has_table_privilege('consumer_offset', 'INSERT')
   AND has_table_privilege('consumer_offset', 'UPDATE'), current_user
""")

_HOPELESS = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    'role "',
    'database "',
)


def wait_for_database(database: Database, stop: Stop) -> bool:
    """True once the database answers and holds our schema; False if told to stop before.

    Raises ConfigurationError or SchemaError for what no waiting can mend.
    """
    notice = Notice()
    failures = 0
    where = database.engine.url.render_as_string(hide_password=True)
    while not stop.is_set():
        try:
            database.transact(lambda: _check_database(database.engine))
        except DBAPIError as error:
            reason = (str(error.orig).strip().splitlines() or [""])[0]
            if _hopeless(error):
                raise ConfigurationError(f"cannot use the database {where}: {reason}") from error
            failures += 1
            notice.trouble(f"waiting for the database {where}: {reason}")
            stop.wait(min(2.0, backoff.seconds(backoff.FAILURE, failures)))
        except SQLAlchemyError as error:
            raise ConfigurationError(f"cannot use the database {where}: {error}") from error
        else:
            notice.over(f"the database {where} answers")
            return True
    return False


def _check_database(engine: Engine) -> None:
    with engine.connect() as connection:
        if getattr(connection.connection.driver_connection, "autocommit", False):
            raise ConfigurationError(
                "the engine runs in AUTOCOMMIT, where results and offset cannot be stored together; "
                "create it without isolation_level='AUTOCOMMIT'"
            )
        ddl.check(connection)
        allowed, user = connection.execute(RIGHTS).one()
        if not allowed:
            raise SchemaError(
                f"role {user} may not read and write consumer_offset; give it the consumer's rights with "
                "`outbox-relay db roles`"
            )


def _hopeless(error: DBAPIError) -> bool:
    state = sqlstate(error)
    if state is not None:
        return state.startswith(("28", "3D", "42"))
    words = str(error.orig)
    return any(part in words for part in _HOPELESS) and "starting up" not in words


def wait_for_topics(identities: Identities, topics: Iterable[str], stop: Stop, *, patience: float) -> bool:
    """True once the brokers know all topics; False if told to stop before.

    Raises ConfigurationError if a topic is missing for `patience` seconds, or the brokers refuse us.
    """
    names = list(topics)
    brokers, missing_topics = Notice(), Notice()
    failures, missing_since = 0, None
    while not stop.is_set():
        try:
            found = identities.look(names)
        except KafkaException as error:
            if (refusal := identities.refusal()) is not None:
                raise ConfigurationError(
                    f"the Kafka brokers refuse this client: {refusal}; check security.protocol, the user and "
                    "password or certificate"
                ) from error
            brokers.trouble(f"waiting for the Kafka brokers: {describe(error)}")
        else:
            brokers.over("the Kafka brokers answer")
            missing = [name for name in names if isinstance(found.get(name), TopicMissing)]
            forbidden = [name for name in names if name not in found]
            if forbidden:
                raise ConfigurationError(
                    f"the brokers do not describe topic {', '.join(forbidden)} to this client; allow it "
                    "DESCRIBE and READ"
                )
            if not missing:
                _say_if_unknown(found.values())
                return True
            missing_since = missing_since or time.monotonic()
            what = f"topic {', '.join(missing)} does not exist on these brokers"
            if time.monotonic() - missing_since > patience:
                raise ConfigurationError(f"{what}; create it, or correct the topic that the events name")
            missing_topics.trouble(f"{what}; waiting for it")
        failures += 1
        stop.wait(min(1.0, backoff.seconds(backoff.FAILURE, failures)))
    return False


def _say_if_unknown(identities: Iterable[TopicIdentity | TopicMissing]) -> None:
    for identity in identities:
        if isinstance(identity, TopicIdentity) and (identity.cluster_id or "").startswith(MOCK):
            log.warning(
                "this is librdkafka's mock cluster: topics have no ids here, so a topic that is deleted and "
                "made again cannot be told apart"
            )
            return
