"""Parameter sweeps: many runs of variants of one scenario, several of them at a time.

For programs: `SweepRunner(SweepConfig(...), "results/tax.csv", jobs=4).run()`.
"""

from swarm_integration.sweep.design import SweepConfig, SweepParameter
from swarm_integration.sweep.results import SweepResult, SweepResults
from swarm_integration.sweep.runner import SweepRunner

__all__ = ["SweepConfig", "SweepParameter", "SweepResult", "SweepResults", "SweepRunner"]
