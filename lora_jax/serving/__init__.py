"""Serving: requests for different adapters of one base, answered in one batch that never stops."""
