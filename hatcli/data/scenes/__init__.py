"""Street scenes with labels, drawn by rule: data for the demo and the tests, with no download."""
