"""The command `adc-edge`, also as ``python -m adc_edge``."""

import signal


def run() -> None:
    """Run the command line. Until it is loaded, Ctrl-C ends the process at once and without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in a background job, which ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from adc_edge.cli import main

    main()


if __name__ == "__main__":
    run()
