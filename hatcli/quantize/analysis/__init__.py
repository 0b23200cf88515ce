"""Which layer costs the accuracy, why, and which few to raise."""
