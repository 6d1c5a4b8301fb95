"""Many runs and what they say: studies, statistics, reports, comparisons, plots; and runs that have not begun."""
