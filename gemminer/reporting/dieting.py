"""A data diet as Python has it, `gemminer.scores` and `gemminer.instability`: their progress shown.

In a file of its own, for a progress bar takes a tenth of a second to import.
"""

from __future__ import annotations

from gemminer.reporting.calls import shown
from gemminer.runs import connectivity, dieting

scores = shown(dieting.scores)
instability = shown(connectivity.instability)
