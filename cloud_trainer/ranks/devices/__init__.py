"""The devices of a trainer of several ranks: which rank serves which one, and how it comes there."""
