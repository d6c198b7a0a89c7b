"""Learning of the head on several ranks: in lockstep, or on each alone with averages."""
