"""The demo. Importing this much costs nothing."""

from typing import Final

MODEL: Final = "hear-see-ask"
"""Name of the demo's model."""
