"""`outbox-relay consumers`: look at groups, and mend, move, rebuild or switch them; a file a command."""

import click

from relay.cli.consumers.accept import accept
from relay.cli.consumers.listing import list_
from relay.cli.consumers.parked import parked
from relay.cli.consumers.rebuild import rebuild
from relay.cli.consumers.seek import seek
from relay.cli.consumers.switch import switch


@click.group()
def consumers() -> None:
    """Look at consumer groups and mend what they parked."""


for command in (list_, parked, seek, accept, rebuild, switch):
    consumers.add_command(command)
