"""The record format and its containers; nothing here loads torch."""
