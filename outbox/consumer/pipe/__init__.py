"""Kafka → handlers → Kafka, exactly once, where there is no database."""
