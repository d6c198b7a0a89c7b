"""The trainer in the cloud: it trains the head for many devices."""
