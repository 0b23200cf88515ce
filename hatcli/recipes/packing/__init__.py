"""hat pack, and what is done to packs afterwards; nothing here loads torch."""
