"""Bring one service's database to its newest revision, also when several processes start at once."""

from importlib.resources import as_file, files

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtext('alembic_version'))")
"""Who comes second waits here, then finds nothing left to do."""


def migrate(engine: Engine, service: str, *, to: str = "head") -> None:
    """Upgrade to revision `to` with the migrations inside the package `service`, in one transaction."""
    with as_file(files(service) / "migrations") as folder, engine.begin() as connection:
        connection.execute(ONE_AT_A_TIME)
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        if to == "base":
            command.downgrade(config, to)
        else:
            command.upgrade(config, to)
