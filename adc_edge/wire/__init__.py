"""Bytes <-> the other side: messages, frames, sockets, connections."""
