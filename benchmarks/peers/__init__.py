"""Other relays, each at its best, in the same rounds on the same rows: `python -m benchmarks.peers`."""
