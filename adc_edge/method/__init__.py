"""The paper's method as pure functions of tensors: trunk, ADC, ratio, labels, and the only use of timm."""
