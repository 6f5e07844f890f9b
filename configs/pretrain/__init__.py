"""Pre-training of small models for machines without a hub."""
