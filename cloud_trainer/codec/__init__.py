"""The codec in torch, for a trainer on a GPU: the format of `adc_edge/codec/precision.py`, on any device of torch."""
