"""What the entries of the speedrun share: the config of small_en on the corpus in a folder. No entry by itself."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments import small_en

CORPUS = "corpus"  # where ../shared/data/pretrain_en.tar.xz was unpacked


def start(folder: str | None = None) -> ConfigDict:
    """Returns small_en's config, which every entry changes; it is evaluated and saved once, at its end."""
    config = small_en.get_config()
    root = Path(folder or CORPUS)
    config.data.files = f"{root}/enwiki2015/**/wiki_*,{root}/gutenberg/*___*.txt"
    config.data.prepared = str(root.parent / "prepared")
    return config
