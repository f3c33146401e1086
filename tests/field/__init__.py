"""Files as strangers bring them, written by scripts, each with the answer that is right. ``python -m field FOLDER``."""
