"""From raw datasets to batches: packs, packers, datasets, transforms, the loader."""
