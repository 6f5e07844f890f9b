"""Adapting classifiers of pictures."""
