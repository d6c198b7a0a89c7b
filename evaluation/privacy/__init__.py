"""`adc-edge privacy`: reconstruction of images from the activations."""
