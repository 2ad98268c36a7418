"""`python -m relay` is `outbox-relay`."""

from relay.cli import main

if __name__ == "__main__":
    main()
