from bert_jax.command import run_command
from bert_jax.lab.report.command import main

if __name__ == "__main__":
    run_command(main)
