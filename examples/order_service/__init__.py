"""Three services that share nothing but events: order (HTTP), invoice and shipping.

Each has its own database and migrations and its own process: `python -m examples.order_service.order`,
`.invoice`, `.shipping`. What they agree on stands in `events.py`; README.md starts them by hand.
"""
