"""A compacted topic's newest values at hand, rebuilt from Kafka and kept current."""
