"""The paper as pure functions of tensors: trunk, ADC, ratio, labels, and the seam to timm."""
