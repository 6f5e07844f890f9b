"""A self-check of adapted models on example inputs."""
