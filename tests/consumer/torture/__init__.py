"""Six consumer processes on three brokers, and everything that can be done to them."""
