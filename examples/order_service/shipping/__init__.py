"""Ship what was invoiced, unless the order was cancelled: whichever news comes first."""
