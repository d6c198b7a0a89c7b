"""Messages of devices that send each image once, kept on disk, and the steps that the trainer does alone with them."""
