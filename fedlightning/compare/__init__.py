"""Methods compared on one task: a list of runs, each in a folder of its own, and the table that they add up to."""

from fedlightning.compare.comparison import Comparison, compare, run_together
from fedlightning.compare.diary import Progress
from fedlightning.compare.names import name_methods
from fedlightning.compare.table import Outcome, Table, Tuned, read_run

__all__ = [
    "Comparison", "Outcome", "Progress", "Table", "Tuned", "compare", "name_methods", "read_run", "run_together",
]  # fmt: skip
