"""The subcommands of `avocat`, one file each."""
