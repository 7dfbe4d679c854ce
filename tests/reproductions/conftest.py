"""The scripts of reproductions as modules, as they see each other when one of them runs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "reproductions"))
