"""Adapter folders from the command line: listed, checked, compared, combined, reduced."""
