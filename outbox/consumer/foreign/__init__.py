"""Records that no outbox's relay wrote: understood, and their producer's repeats dropped."""
