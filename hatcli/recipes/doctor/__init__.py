"""hat doctor: whether this machine will do."""
