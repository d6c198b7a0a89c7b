"""Live areas of a terminal: rows that fit, curves and bars of characters, and figures in words."""
