"""A fleet in one process: its data divided among devices, their trunks, and what brings these together."""
