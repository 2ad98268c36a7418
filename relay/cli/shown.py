"""Show one event to a person, or as JSON to a program."""

import json
from typing import Any

import click

from relay.cli import options


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """All that is known of it, a line each; what it does not have is left out."""
    found = {**found, "payload": readable(found["payload"])}
    if as_json:
        options.echo_json(found)
        return
    for name, value in found.items():
        if value is not None:
            click.echo(f"{name}: {json.dumps(value) if isinstance(value, dict) else value}")


def readable(payload: Any) -> str | None:
    """A payload for a person or a JSON document: its text, or the beginning of its bytes."""
    if payload is None:
        return None
    try:
        return bytes(payload).decode()
    except UnicodeDecodeError:
        return f"{len(payload)} bytes, hexadecimal {bytes(payload)[:200].hex()}"
