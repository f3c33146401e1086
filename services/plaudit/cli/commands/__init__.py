"""Commands, a module a group; :mod:`plaudit.cli.app` puts them together."""
