"""Several trainer processes on one head: torchrun starts them, each serves its devices, rounds keep all heads alike."""
