from bert_jax.lab.sweep.command import run

if __name__ == "__main__":
    run()
