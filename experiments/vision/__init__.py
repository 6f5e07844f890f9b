"""Methods on nets for pictures, adapted from upright digits to turned or coloured ones."""
