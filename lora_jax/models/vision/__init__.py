"""Classifiers of pictures: residual convolutional nets (ResNet) and Vision Transformers (ViT)."""
