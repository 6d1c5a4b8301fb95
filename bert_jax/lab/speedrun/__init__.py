"""The speedrun: entries, their score on held-out words, and the file of records. The rules: docs/speedrun.md."""
