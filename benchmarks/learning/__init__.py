"""Quality of what the learner learns, beside its peers on the same streams; `make bench-learning`."""
