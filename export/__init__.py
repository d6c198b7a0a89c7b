"""Trunk and ADC to ONNX, the parity report, and both halves merged back into one timm checkpoint."""
