"""Charge each order exactly once, whatever happens on the way."""
