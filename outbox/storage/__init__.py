"""Where events wait: tables, their versioned DDL, the roles that may touch them."""
