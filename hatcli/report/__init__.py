"""Pictures from numbers and arrays."""
