"""What a step costs: model FLOPs, the chips that run it, and the traffic between them."""
