"""The relay's settings: frozen, validated at birth, from argument > environment > file > default."""

import os
import socket
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from outbox.errors import ConfigurationError
from relay import database
from relay.producers.properties import checked

FILE = Path("outbox-relay.toml")


def _instance() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


class RelayConfig(BaseSettings):
    """Settings of one relay. Environment: `OUTBOX_` + the field's name, nested with `__`."""

    model_config = SettingsConfigDict(
        env_prefix="OUTBOX_", env_nested_delimiter="__", frozen=True, extra="forbid", toml_file=FILE
    )

    database_url: SecretStr = Field(
        description="PostgreSQL that holds the outbox, as a libpq or SQLAlchemy URL"
    )
    kafka_bootstrap_servers: str = Field(default="", description="Kafka address, host:port[,host:port]")
    kafka: dict[str, Any] = Field(
        default_factory=dict,
        description="librdkafka's own properties; OUTBOX_KAFKA__SASL_USERNAME is sasl.username",
    )
    shard: int = Field(default=0, ge=0, description="the shard to carry")
    instance: str = Field(default_factory=_instance, description="name of this relay among others")
    prepared_statements: bool = Field(
        default=True, description="False behind a transaction pooler that cannot hold prepared statements"
    )
    lease: timedelta = Field(
        default=timedelta(seconds=5), description="a relay silent for longer is succeeded by another"
    )
    poll_busy: timedelta = Field(default=timedelta(milliseconds=2), description="between looks under traffic")
    poll_idle: timedelta = Field(default=timedelta(milliseconds=100), description="between looks while idle")
    look_rows: int = Field(default=1_000, ge=1, description="events of one delta held in memory at most")
    chunk_rows: int = Field(default=2_000, ge=1, description="rows of a backlog read and sent at a time")
    chunk_bytes: int = Field(default=4_194_304, ge=1, description="payload bytes read and sent at a time")
    retention: timedelta = Field(
        default=timedelta(minutes=30), description="published events stay readable for at least so long"
    )
    stop_timeout: timedelta = Field(
        default=timedelta(seconds=10), description="how long SIGTERM waits for acknowledgements"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def load(cls, file: Path | None = None, **arguments: Any) -> "RelayConfig":
        """Settings from everywhere. Raises ConfigurationError naming what is wrong, never a secret value."""
        if file is not None and not file.is_file():
            raise ConfigurationError(f"configuration file {file} does not exist")

        class _WithFile(cls):  # type: ignore[valid-type, misc]
            model_config = SettingsConfigDict(toml_file=file or FILE)

        try:
            return _WithFile(**{name: value for name, value in arguments.items() if value is not None})
        except ValidationError as error:
            raise ConfigurationError(_explain(error)) from None

    @field_validator("database_url")
    @classmethod
    def _url(cls, value: SecretStr) -> SecretStr:
        database.describe(value.get_secret_value())
        return value

    @field_validator("kafka")
    @classmethod
    def _dotted(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Environment variables cannot hold dots: SASL_USERNAME means sasl.username."""
        return {name if "." in name else name.lower().replace("_", "."): v for name, v in value.items()}

    @field_validator("lease", "poll_busy", "poll_idle", "stop_timeout")
    @classmethod
    def _positive(cls, value: timedelta) -> timedelta:
        if value <= timedelta(0):
            raise ValueError("must be longer than nothing")
        return value

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


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        name = "__".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            lines.append(f"{name} is not set; set OUTBOX_{name.upper()} or {name} in {FILE}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{name} is no setting; remove it or correct its name")
        else:
            lines.append(f"{name or 'settings'}: {problem['msg'].removeprefix('Value error, ')}")
    return "the relay's settings cannot work:\n  " + "\n  ".join(lines)
