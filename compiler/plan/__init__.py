"""Which reductions run where: CommPlan and the cut that finds it."""
