"""Records of the log joined and saved; every learner does this."""
