"""What the relay and a consumer tell people, probes and Prometheus."""
