"""The online learner: updates in seconds."""
