"""Pictures on their way in: collections, decoding, crops, and batches to train, encode and evaluate on."""
