"""Data-to-text with GPT-2: Tables 3, 13 and 14."""
