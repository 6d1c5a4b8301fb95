"""The BERT of docs/tutorials: 2 layers, 64 wide, pretrained within a minute on texts about a town that does not exist.

    from experiments import tutorial
    start = tutorial.pretrained("bert_jax_tutorials")   # a workdir for init_from; trained when it is asked for first

`write_corpus` writes the texts: visits to the cinema, a restaurant or a hotel, which please or displease, and people
with their work. The language is small enough for half a minute on two cores, and has what the tasks of the tutorials
need: words that mean nearly the same, names made of parts, places of work. Expect: held-out `mlm_loss` 0.8
(`unigram_entropy` 4.5) and `nsp_accuracy` 0.9. `experiments/tiny.py` is the smallest BERT on real English.
"""

import csv
import random
from pathlib import Path

from ml_collections import ConfigDict

from experiments import base

POSITIVE = ["wonderful", "great", "excellent", "lovely", "superb", "good", "charming"]
NEGATIVE = ["terrible", "awful", "horrible", "poor", "boring", "bad", "dull"]
WOMEN = ["Anna", "Clara", "Emma", "Greta", "Ida", "Lena", "Mary", "Nina", "Rosa", "Vera"]
MEN = ["Ben", "Carl", "David", "Felix", "Henry", "Jonas", "Leo", "Max", "Oscar", "Paul"]
SURNAMES = [a + b for a in ("Ander", "Carl", "Han", "Jan", "Peter", "Robin") for b in ("son", "sen", "man")]
TOWNS = [a + b for a in ("Ash", "Brook", "Hill", "Lake", "Nor", "Stone", "West") for b in ("ton", "ford", "by", "dale")]
COMPANIES = [a + b for a in ("Alpha", "Delta", "Omni", "Terra") for b in ("bank", "tech", "foods", "lines")]
# Where people work, and with what.
WORK = {
    "doctor": ("hospital", "patients"),
    "teacher": ("school", "pupils"),
    "baker": ("bakery", "bread"),
    "farmer": ("farm", "cows"),
    "pilot": ("airport", "planes"),
    "singer": ("theatre", "songs"),
    "cook": ("kitchen", "soups"),
    "judge": ("court", "laws"),
}
VISITS = {
    "cinema": ("film", "story", "music", "ending", "camera"),
    "restaurant": ("fish", "cake", "wine", "waiter", "salad"),
    "hotel": ("room", "bed", "view", "breakfast", "garden"),
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def visit(rng: random.Random) -> list[str]:
    """Returns sentences about an evening that was good or bad."""
    kind, place = rng.choice(("positive", "negative")), rng.choice(sorted(VISITS))
    she, name = _person(rng)
    sentences = [f"On {rng.choice(DAYS)} {name} went to the {place} in {rng.choice(TOWNS)}."]
    sentences += [opinion(rng, kind, thing, name) for thing in rng.sample(VISITS[place], 4)]
    return [*sentences, f"{she} will {'come' if kind == 'positive' else 'never come'} again."]


def opinion(rng: random.Random, kind: str, thing: str, name: str) -> str:
    """Returns a sentence that praises a thing or blames it, by `kind`: positive or negative."""
    one, other = rng.sample(POSITIVE if kind == "positive" else NEGATIVE, 2)
    loves, happy = ("loves", "happy") if kind == "positive" else ("hates", "sad")
    forms = (
        f"The {thing} was {one}.",
        f"The {thing} was {one} and {other}.",
        f"{name} {loves} this {one} {thing}.",
        f"The {thing} was {one}, and {name} was {happy}.",
        f"What a {one} and {other} {thing}!",
    )
    return rng.choice(forms)


def life(rng: random.Random) -> list[str]:
    """Returns sentences about a person and the person's work."""
    she, name = _person(rng)
    her = "Her" if she == "She" else "His"
    job, (place, things) = rng.choice(sorted(WORK.items()))
    town, company = rng.choice(TOWNS), rng.choice(COMPANIES)
    _, friend = _person(rng)
    sentences = [
        f"{name} {rng.choice(SURNAMES)} lives in {town}.",
        f"{she} is a {job} and works in the {place}.",
        f"The {job} likes the {things} of this {place}.",
        f"{her} friend {friend} {rng.choice(SURNAMES)} works for {company} in {rng.choice(TOWNS)}.",
        f"On {rng.choice(DAYS)} {name} takes the train to {rng.choice(TOWNS)}.",
        f"{company} has an office in {town}.",
    ]
    return sentences[:1] + rng.sample(sentences[1:], 4)


def write_corpus(path: Path, documents: int = 4_000, seed: int = 0) -> Path:
    """Writes documents with one sentence per line and blank lines between them, and returns the path."""
    rng = random.Random(seed)
    texts = ["\n".join(rng.choice((visit, life))(rng)) for _ in range(documents)]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def write_verdicts(path: Path, count: int, seed: int) -> Path:
    """Writes a table of sentences about things, labelled "good" and "bad" in turns, and returns the path."""
    rng = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("text", "label"))
        for number in range(count):
            is_good = number % 2 == 1
            thing = rng.choice(VISITS[rng.choice(sorted(VISITS))])
            word = rng.choice(POSITIVE if is_good else NEGATIVE)
            table.writerow((f"The {thing} was {word}.", "good" if is_good else "bad"))
    return path


def get_config() -> ConfigDict:
    """Returns the config, in which `data.files` is still to be set."""
    config = base.get_config("tiny")
    config.model.update(hidden_size=64, num_attention_heads=4, intermediate_size=256, max_position_embeddings=128)
    config.model.update(dtype="float32", hidden_dropout=0.0, attention_dropout=0.0, initializer_range=0.05)
    config.model.position_embedding = "rotary"  # learned ones need several times the steps
    config.data.update(corpus="text", vocab_size=400, sequence_length=40, max_predictions_per_sequence=6)
    config.data.update(validation_share=0.05, test_share=0.0, short_sequence_rate=0.3)
    config.optimizer.update(name="muon", learning_rate=1e-2, b2=0.98, schedule="hf", warmup_steps=30, decay_steps=0)
    config.optimizer.bias_correction = True
    config.train.update(steps=800, batch_size=32, log_every=50, peak_tflops=1.0)
    config.eval.update(every=400, at_start=False)
    config.checkpoint.update(every=400, keep=1)
    config.mesh.data = 1
    return config


def pretrained(folder: Path | str) -> Path:
    """Returns the workdir in this folder, after training what is missing of its run."""
    import bert_jax  # to read an experiment imports nothing heavy

    folder = Path(folder)
    workdir = folder / "pretrained"
    if (workdir / "plots").exists():  # drawn at the end of a run
        return workdir
    config = get_config()
    config.data.files, config.data.prepared = str(folder / "town.txt"), str(folder / "prepared")
    write_corpus(folder / "town.txt")
    bert_jax.train(config, workdir)
    return workdir


def _person(rng: random.Random) -> tuple[str, str]:
    return ("She", rng.choice(WOMEN)) if rng.random() < 0.5 else ("He", rng.choice(MEN))
