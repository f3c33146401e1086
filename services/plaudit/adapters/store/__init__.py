"""Experience stores."""
