"""Scores of the tasks, as the paper reports them."""
