"""The command line: one file a command group."""

STOPPED = "stopped; --resume goes on with a training run, a sweep, a search or an evaluation"
"""What Ctrl-C and SIGTERM print."""
