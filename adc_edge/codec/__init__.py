"""A tensor <-> bytes on the wire, for each precision (`docs/codec.md`)."""
