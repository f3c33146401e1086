"""How versions are rolled out and watched; see __main__.py."""
