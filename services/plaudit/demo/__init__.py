"""The demo. Importing the package loads none of its modules."""

from typing import Final

MODEL: Final = "hear-see-ask"
"""Name of the demo's model."""
