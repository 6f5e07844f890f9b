"""What the paper prints: rows, scores, counts of trained values."""
