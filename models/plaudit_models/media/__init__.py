"""Encoded images and sounds → arrays. Containers are read and bounded here; Pillow and libsndfile decode them."""
