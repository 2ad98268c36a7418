"""The consuming half on real servers."""
