"""Go on after another database or another cluster took the place of ours."""
