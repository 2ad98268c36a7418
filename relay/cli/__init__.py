"""`outbox-relay`: one executable, one file a command group."""

try:
    from relay.cli.main import main
except ModuleNotFoundError as error:
    if error.name != "click":
        raise
    # The library alone is installed: its script is there, what the script needs is not.
    raise SystemExit("outbox-relay: the commands need more; run: pip install 'outbox-relay[relay]'") from None

__all__ = ["main"]
