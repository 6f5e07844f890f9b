"""What methods insert into a model: low-rank updates, bottleneck adapters, special tokens, cuts."""
