"""The machine that computes: its description for the record, its processor, the threads that it has room for."""
