"""Many runs and what they say: studies, statistics, reports, comparisons, plots; and what can be said of a run before it
starts."""
