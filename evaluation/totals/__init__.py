"""The bytes of a whole training, beside those of its images sent once."""
