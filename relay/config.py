"""The relay's settings: frozen, validated at birth, from argument > environment > file > default."""

import difflib
import logging
import os
import re
import socket
import tomllib
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from outbox.errors import ConfigurationError
from relay import database
from relay.envelope import EnvelopeName
from relay.producers.properties import checked, named
from relay.telemetry import health

log = logging.getLogger("relay")

FILE = Path("outbox-relay.toml")

SHORTEST_LEASE = timedelta(milliseconds=100)
LONGEST_LEASE = timedelta(minutes=10)
"""A relay that dies leaves its events waiting for so long."""

LONGEST_TRANSACTION = timedelta(seconds=5)


_URI = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2}){1,200}")
"""The characters of RFC 3986."""


def _instance() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def _seconds(value: Any) -> Any:
    """A number is seconds, also where everything is a text: `OUTBOX_LEASE=5`."""
    if not isinstance(value, str):
        return value
    try:
        return timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        return value


Duration = Annotated[timedelta, BeforeValidator(_seconds)]
"""Seconds (5, 0.5) or ISO 8601 (PT5S)."""


class RelayConfig(BaseSettings):
    """Settings of one relay. Environment: `OUTBOX_` + the field's name, nested with `__`.

    Durations are `timedelta`, seconds or ISO 8601. What an argument leaves open the environment decides,
    then the file `outbox-relay.toml` in the current directory, then the default.
    """

    model_config = SettingsConfigDict(
        env_prefix="OUTBOX_", env_nested_delimiter="__", frozen=True, extra="forbid", toml_file=FILE
    )

    database_url: SecretStr = Field(
        description="PostgreSQL that holds the outbox, as a libpq or SQLAlchemy URL"
    )
    databases: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        repr=False,  # holds passwords
        description="several databases for one daemon, each by a name: its url, and settings of its own",
    )
    kafka_bootstrap_servers: str = Field(default="", description="Kafka address, host:port[,host:port]")
    kafka: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,  # holds passwords
        description="librdkafka's own properties; OUTBOX_KAFKA__SASL_USERNAME is sasl.username",
    )
    instance: str = Field(
        default_factory=_instance,
        min_length=1,
        description="name of this relay; no two running ones share one",
    )
    prepared_statements: bool | None = Field(
        default=None,
        description="whether statements are prepared; unset: directly yes, behind a pooler no",
    )
    lease: Duration = Field(
        default=timedelta(seconds=5), description="a relay silent for longer is succeeded by another"
    )
    poll_busy: Duration = Field(default=timedelta(milliseconds=1), description="between looks under traffic")
    poll_idle: Duration = Field(default=timedelta(milliseconds=120), description="between looks while idle")
    look_rows: int = Field(default=1_000, ge=1, description="events of one delta held in memory at most")
    chunk_rows: int = Field(default=2_000, ge=1, description="rows of a backlog read and sent at a time")
    transaction_rows: int = Field(
        default=2_000, ge=1, description="the same in mode transactional, where a chunk is never divided"
    )
    transaction_time: Duration = Field(
        default=timedelta(milliseconds=200),
        description="for so long a Kafka transaction takes in further chunks of a backlog; 0: one each",
    )
    compacted_topics: Literal["refuse", "allow"] = Field(
        default="refuse", description="whether mode sequenced may send to compacted topics"
    )
    envelope: EnvelopeName = Field(
        default="outbox",
        description="headers of the records: the outbox's own, CloudEvents' or the Debezium Event Router's, "
        "each beside outbox-seq",
    )
    cloudevents_source: str = Field(
        default="/outbox", description="ce_source with envelope = cloudevents: a URI of this service"
    )
    chunk_bytes: int = Field(default=4_194_304, ge=1, description="payload bytes read and sent at a time")
    retention: Duration = Field(
        default=timedelta(minutes=30), description="published events stay readable for at least so long"
    )
    pending_alarm: Duration = Field(
        default=timedelta(minutes=5), description="age of the oldest pending event that is an alarm"
    )
    health_address: str | None = Field(
        default=None, description="host:port of /healthz, /readyz and /metrics; a port alone binds loopback"
    )
    wait_for_standby: str = Field(
        default="",
        description="send an event only once these standbys flushed its plan: their application_names, "
        "separated by commas, or how many of any name",
    )
    standby_away: Literal["wait", "go on"] = Field(
        default="wait", description="while they do not answer: wait, or go on with an alarm"
    )
    standby_patience: Duration = Field(
        default=timedelta(seconds=5), description="silence after which a standby counts as away"
    )
    missing_topic: Literal["wait", "park"] = Field(
        default="wait",
        description="an event whose topic is missing or forbidden to us: wait for it, or set the event aside",
    )
    max_parked: int = Field(
        default=1_000,
        ge=0,
        description="keys of a shard that may wait behind a refused event; then the shard halts",
    )
    stop_timeout: Duration = Field(
        default=timedelta(seconds=10), description="how long SIGTERM waits for acknowledgements"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        arguments = InitSettingsSource(settings_cls, _with_kafka_named(init_settings()))
        return arguments, _Environment(settings_cls), _File(settings_cls)

    @classmethod
    def load(cls, file: Path | None = None, **arguments: Any) -> "RelayConfig":
        """Settings from everywhere. Raises ConfigurationError naming what is wrong, never a secret value."""
        if file is not None and not file.is_file():
            raise ConfigurationError(f"configuration file {file} does not exist")

        class _WithFile(cls):  # type: ignore[valid-type, misc]
            model_config = SettingsConfigDict(toml_file=file or FILE)

        try:
            config = _WithFile(**{name: value for name, value in arguments.items() if value is not None})
        except ValidationError as error:
            raise ConfigurationError(_explain(error)) from None
        except SettingsError as error:
            raise ConfigurationError(f"environment: {error}; it must be one JSON object") from None
        except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"configuration file {file or FILE} cannot be read: {error}") from None
        _warn_of_misspelt(cls)
        return config

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not given.get("databases"):
            return given
        if "database_url" in given:
            raise ValueError("give either database_url or [databases.NAME] sections, not both")
        first = next(iter(given["databases"].values()))
        return {**given, "database_url": first.get("url", "") if isinstance(first, dict) else ""}

    @field_validator("databases")
    @classmethod
    def _sections(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, section in value.items():
            if not section.get("url"):
                raise ValueError(f"{name} has no url; set OUTBOX_DATABASES__{name.upper()}__URL")
            if unfit := section.keys() & {"database_url", "databases", "instance", "health_address"}:
                raise ValueError(f"{name} cannot have {', '.join(sorted(unfit))} of its own")
        return value

    def each(self) -> dict[str, "RelayConfig"]:
        """The settings of each database by its name: those of all, and its section's on top.

        Raises ConfigurationError naming the section that cannot work.
        """
        common = {name: getattr(self, name) for name in self.model_fields_set - _OF_THE_DAEMON}
        return {
            name: _section(name, {**common, "instance": self.instance}, section)
            for name, section in self.databases.items()
        }

    @field_validator("database_url")
    @classmethod
    def _url(cls, value: SecretStr) -> SecretStr:
        database.describe(value.get_secret_value())
        return value

    @field_validator("lease", "poll_busy", "poll_idle", "pending_alarm", "stop_timeout")
    @classmethod
    def _positive(cls, value: timedelta) -> timedelta:
        if value <= timedelta(0):
            raise ValueError("must be longer than nothing")
        return value

    @field_validator("lease")
    @classmethod
    def _renewable(cls, value: timedelta) -> timedelta:
        if value < SHORTEST_LEASE:
            raise ValueError(f"must be {SHORTEST_LEASE.total_seconds():g} s at least, to be renewed in time")
        if value > LONGEST_LEASE:
            minutes = LONGEST_LEASE.total_seconds() / 60
            raise ValueError(f"must be {minutes:g} min at most: for so long a dead relay has no successor")
        return value

    @field_validator("transaction_time")
    @classmethod
    def _soon_over(cls, value: timedelta) -> timedelta:
        if not timedelta(0) <= value <= LONGEST_TRANSACTION:
            seconds = LONGEST_TRANSACTION.total_seconds()
            raise ValueError(f"must be {seconds:g} s at most: for so long readers wait for what is in it")
        return value

    @field_validator("health_address")
    @classmethod
    def _bindable(cls, value: str | None) -> str | None:
        if value is not None:
            health.address(value)
        return value

    @field_validator("retention")
    @classmethod
    def _not_negative(cls, value: timedelta) -> timedelta:
        if value < timedelta(0):
            raise ValueError("must not be negative")
        return value

    @field_validator("cloudevents_source")
    @classmethod
    def _uri(cls, value: str) -> str:
        if not _URI.fullmatch(value):
            raise ValueError(
                "must be a URI or a path of at most 200 characters without spaces, such as /shop/orders"
            )
        return value

    @field_validator("wait_for_standby")
    @classmethod
    def _standbys(cls, value: str) -> str:
        if value.strip().isdecimal() and int(value) == 0:
            raise ValueError("must be names or a number from 1; leave it away to wait for none")
        if value and not all(name.strip() for name in value.split(",")):
            raise ValueError("holds an empty name")
        return value

    @property
    def standby_names(self) -> tuple[str, ...]:
        """Each has to flush; none named when any will do."""
        named = [name.strip() for name in self.wait_for_standby.split(",") if name.strip()]
        return () if self.wait_for_standby.strip().isdecimal() else tuple(dict.fromkeys(named))

    @property
    def standby_count(self) -> int:
        """How many have to flush."""
        return len(self.standby_names) or int(self.wait_for_standby or 0)

    @model_validator(mode="after")
    def _guarantees(self) -> "RelayConfig":
        checked(self.kafka_properties)
        return self

    @property
    def url(self) -> str:
        return self.database_url.get_secret_value()

    @property
    def kafka_properties(self) -> dict[str, Any]:
        """What librdkafka gets, before defaults."""
        if not self.kafka_bootstrap_servers:
            return dict(self.kafka)
        return {**self.kafka, "bootstrap.servers": self.kafka_bootstrap_servers}


_OF_THE_DAEMON = frozenset({"databases", "database_url", "health_address"})


class _Section(RelayConfig):
    """One database's settings: they come from the whole's, not from the environment again."""

    model_config = SettingsConfigDict(toml_file=None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _section(name: str, common: dict[str, Any], section: dict[str, Any]) -> RelayConfig:
    own = _with_kafka_named({field: value for field, value in section.items() if field != "url"})
    kafka = {**common.get("kafka", {}), **own.get("kafka", {})}
    try:
        return _Section(**{**common, **own, "kafka": kafka, "database_url": section["url"]})
    except ValidationError as error:
        raise ConfigurationError(f"[databases.{name}]: {_explain(error)}") from None


def _with_kafka_named(given: dict[str, Any]) -> dict[str, Any]:
    """Each source under the same names, so that a later one overrides an earlier one however it spells it."""
    kafka = given.get("kafka")
    return {**given, "kafka": named(kafka)} if isinstance(kafka, dict) else given


class _Environment(EnvSettingsSource):
    """A value nested by `__` is a text as it stands, never JSON: a password may look like a number."""

    def __call__(self) -> dict[str, Any]:
        return _with_kafka_named(super().__call__())

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        return value if field is None else super().decode_complex_value(field_name, field, value)


class _File(TomlConfigSettingsSource):
    def __call__(self) -> dict[str, Any]:
        return _with_kafka_named(super().__call__())


def _warn_of_misspelt(settings: type[BaseSettings]) -> None:
    """The environment holds other programs' variables too, so an unknown name is only said to look wrong."""
    known = [f"OUTBOX_{name.upper()}" for name in settings.model_fields]
    for name in os.environ:
        if name.startswith("OUTBOX_") and "__" not in name and name not in known:
            for meant in difflib.get_close_matches(name, known, 1, 0.85):
                log.warning("environment variable %s is no setting and ignored; is it %s?", name, meant)


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        name = "__".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            lines.append(f"{name} is not set; set OUTBOX_{name.upper()} or {name} in {FILE}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{name} is no setting; remove it or correct its name")
        elif problem["type"].startswith("time_delta"):
            lines.append(f"{name}: is no duration; write seconds (5, 0.5) or ISO 8601 (PT5S)")
        else:
            lines.append(f"{name or 'settings'}: {problem['msg'].removeprefix('Value error, ')}")
    return "the relay's settings cannot work:\n  " + "\n  ".join(lines)
