"""Programs that use the library as their users would."""
