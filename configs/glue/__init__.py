"""GLUE: the RoBERTa rows of Table 2."""
