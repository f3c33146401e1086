"""Quality of what is pre-trained on real data, each beside its single modalities."""
