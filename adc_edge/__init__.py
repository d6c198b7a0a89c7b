"""adc-edge: train a Vision Transformer across a slow link (Attention-based Double Compression)."""

__version__ = "0.18.0"
