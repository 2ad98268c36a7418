"""What becomes of a record that its handler refused: it waits, runs again in its order, or is dropped."""
