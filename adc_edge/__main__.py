"""``python -m adc_edge``."""

from adc_edge.cli import main

main()
