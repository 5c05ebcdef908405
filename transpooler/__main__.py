"""`python -m transpooler` and the program `transpooler`: the command line, which hears signals while it is imported."""

import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        from transpooler.common import exit_on_stop_signals
        from transpooler.launch.exits import claim_standard_streams, code_of_signals, ignore_signals

        claim_standard_streams()
        with exit_on_stop_signals(code_of_signals("".join(sys.argv[1:2]))):
            from transpooler.launch.cli import main as run

            code = run()
        ignore_signals()
        return code
    except KeyboardInterrupt:
        from transpooler.launch.exits import end_interrupted

        return end_interrupted()


if __name__ == "__main__":
    sys.exit(main())
