"""The path of a batch: admission, decoding, evaluation, the decision log."""
