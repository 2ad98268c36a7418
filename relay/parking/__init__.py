"""What becomes of a row that the broker refused: it waits, is sent in its order, or is dropped."""
