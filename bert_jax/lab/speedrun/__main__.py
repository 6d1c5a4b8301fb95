"""Scores runs, makes those of an entry, and keeps the records."""

from bert_jax.lab.speedrun.command import run

if __name__ == "__main__":
    run()
