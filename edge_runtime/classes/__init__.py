"""The classes of a device: which output of the head each label trains, and what the screen shows of them."""
