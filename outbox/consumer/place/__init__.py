"""Where a group reads each partition: where it begins, what it does when it cannot go on, and moving it."""
