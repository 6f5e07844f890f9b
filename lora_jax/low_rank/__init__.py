"""Low-rank updates: the algebra, the layers that take them, merging."""
