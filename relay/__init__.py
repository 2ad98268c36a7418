"""The daemon: carry committed events from PostgreSQL to Kafka, in order."""
