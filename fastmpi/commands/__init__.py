"""What each command of `fastmpi` does; `fastmpi/cli.py` finds them here."""
