"""The command line's root: what every command shares, and how an error reaches a person."""

import importlib
import logging
import sys
from typing import Any

import click

from outbox.errors import OutboxError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_MEND = 3

COMMANDS = {
    "run": "relay.cli.run:run",
    "db": "relay.cli.db:db",
    "status": "relay.cli.status:status",
    "shards": "relay.cli.shards:shards",
    "events": "relay.cli.events:events",
    "parked": "relay.cli.parked:parked",
    "replay": "relay.cli.replay:replay",
    "scheduled": "relay.cli.scheduled:scheduled",
    "rebase": "relay.cli.rebase:rebase",
    "adopt": "relay.cli.adopt:adopt",
    "consume": "relay.cli.consume:consume",
    "consumers": "relay.cli.consumers:consumers",
    "demo": "relay.cli.demo:demo",
}
"""Command → where it lives. Imported only when asked for: a daemon does not load the demo."""


class _Commands(click.Group):
    """Imports a command when it is called, and turns what a user can mend into one message."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OutboxError as error:
            click.echo(f"outbox-relay: {error}", err=True)
            ctx.exit(EXIT_MEND)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--log-level", default="INFO", show_default=True, help="DEBUG, INFO, WARNING or ERROR.")
@click.version_option(package_name="outbox-relay")
def main(log_level: str) -> None:
    """Carry committed events from PostgreSQL to Kafka, in order.

    Exit codes: 0 done, 1 the answer is no (a check or verdict failed), 2 wrong usage, 3 something to mend
    first (settings, schema, rights, identity): the message says what and how.
    """
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise click.BadParameter(
            f"{log_level} is none of DEBUG, INFO, WARNING, ERROR", param_hint="--log-level"
        )
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
