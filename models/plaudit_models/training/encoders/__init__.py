"""Pretrained encoders: what a local folder in the Hugging Face format holds, as a part of a policy and of its graph."""
