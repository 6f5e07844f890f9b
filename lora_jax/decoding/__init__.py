"""Continuing prompts with a decoder: greedy, sampling and beam search, each one compiled program."""
