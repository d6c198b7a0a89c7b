"""Images -> batches: data sources, decoding, augmentation and order."""
