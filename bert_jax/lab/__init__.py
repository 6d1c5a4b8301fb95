"""What is made of finished runs, plots and tables, and what can be said of a run before it starts."""
