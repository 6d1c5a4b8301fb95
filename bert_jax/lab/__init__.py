"""What is made of finished runs: plots and tables."""
