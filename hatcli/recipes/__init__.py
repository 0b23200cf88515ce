"""The story of each command on one screen; generators of events that return a result."""
