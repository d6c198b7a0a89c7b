"""`adc-edge report`: runs as one page that opens offline, and as pictures for a paper."""
