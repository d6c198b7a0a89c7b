"""The model card that `merge` writes beside a checkpoint."""
