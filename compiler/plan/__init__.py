"""Which reductions run where: CommPlan and the two cuts that find it."""
