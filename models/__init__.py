"""Networks: backbones cut into ordered stages, heads, and the weights they start from."""
