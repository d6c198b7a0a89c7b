"""Many devices on one head: whose message is answered next, who is admitted, and messages that are learned together."""
