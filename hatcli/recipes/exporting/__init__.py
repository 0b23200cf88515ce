"""hat export: files for other programs, checked before they get their names."""
