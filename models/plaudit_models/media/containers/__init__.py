"""Containers of encoded media, a module each: what is read and bounded before a C library decodes the rest."""
