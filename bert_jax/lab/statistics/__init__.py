"""What runs with several seeds say about a difference, and how many seeds it takes to say it."""
