"""Pre-training small models for machines without a hub."""
