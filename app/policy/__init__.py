"""What may be asked for: a blocklist, and whoever else is to be asked."""
