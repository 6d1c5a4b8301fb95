"""Many runs and what they say: studies, statistics, reports, comparisons, plots; and of runs to come."""
