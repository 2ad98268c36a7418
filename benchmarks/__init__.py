"""What the framework costs, as ratios against the plainest program that does the same without its promises.

The two sides of a ratio run in turn, several rounds on the same servers, each in a process of its own; the
median counts. Single figures move by tens of percent on a small machine, ratios and CPU time hardly do.
"""
