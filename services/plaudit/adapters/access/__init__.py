"""Guards of the doors: certificates, keys, tokens."""
