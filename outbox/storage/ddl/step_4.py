"""Step 4, frozen once released: scheduled events, and events that SQL writes."""

UP: tuple[str, ...] = ()

DOWN: tuple[str, ...] = ()

COLUMNS: dict[str, dict[str, str]] = {}
