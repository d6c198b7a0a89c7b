"""ADC and its rivals behind one interface."""
