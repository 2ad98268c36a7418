"""What tests of the framework, and of services built on it, start from."""
