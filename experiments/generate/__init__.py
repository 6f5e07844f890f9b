"""Texts of a tuned model: of a file of prompts, or in a conversation at the terminal."""
