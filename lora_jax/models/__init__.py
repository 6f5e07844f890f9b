"""Pre-trained Transformers with stacked, scanned layers, and their weights from Hugging Face files."""
