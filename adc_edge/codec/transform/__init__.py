"""Transform coding of grids of tokens (dct2 ... dct0.0625); begin with ``encoding.py``."""
