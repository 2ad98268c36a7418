"""Show it instead of saying it: orders become invoices exactly once while processes are killed and frozen.

An order's way through the files: `traffic` places it over HTTP, the services of `services` carry it on as the
processes of `fleet`, `trouble` kills and freezes them, `gauge` tells how far everything is, and in the end
`wire` and `evidence` read what is really there, and `verdict` says whether it is right. `scenario` directs.
"""
