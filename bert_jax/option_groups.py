"""Groups of options that few runs set, a part of `options.py`: extractive summaries; pictures, sounds and features
beside a text; new words for the vocabulary of a model that is trained further; distillation; energy."""

from bert_jax.option import choice, integer, number, switch, text

# fmt: off
GROUPS = (
    # Extractive summaries only.
    integer("extractive.layers", 2, "[0, 64]", "transformer layers over the sentences of a row, new ones"),
    integer("extractive.sentences", 3, "[1, 2^20]", "sentences of a summary", "inference"),
    number("extractive.share", None, "(0, 1]", "of a document's sentences, in place of their number", "inference"),
    integer("extractive.words", None, "[1, 2^31)", "of a summary at most, in place of its sentences", "inference"),
    switch("extractive.block_trigrams", True, "no sentence repeats three tokens of one that was chosen", "inference"),

    # With data.image, data.sound or data.features only.
    integer("image.height", 224, "[1, 65536]", "pixels that a picture is scaled to; an array must have them"),
    integer("image.width", 224, "[1, 65536]", "the same"),
    integer("image.channels", 3, "[1, 1024]", "of files 1 (grey) or 3 (colours), of arrays any number"),
    integer("image.patch_size", 16, "[1, 65536]", "pixels on each side of a patch, which becomes one vector"),
    choice("image.fit", "stretch", "stretch | crop | error", "of a picture of another size: crop keeps proportions"),
    text("image.mean", "0.5", "of pixels from 0 to 1: a number, or one per channel; it is subtracted", "needed"),
    text("image.std", "0.5", "the same; pixels are divided by it", "needed"),
    integer("sound.sample_rate", 16_000, "[1000, 1000000]", "Hz that a recording is resampled to"),
    integer("sound.mels", 64, "[1, 4096]", "frequency bands of a spectrogram"),
    integer("sound.frames", 1024, "[1, 2^20]", "of 10 ms at most; the rest of a recording is cut off"),
    integer("sound.patch_frames", 16, "[1, 65536]", "frames of a patch, which becomes one vector"),
    integer("sound.patch_mels", 16, "[1, 4096]", "frequency bands of a patch"),
    integer("features.size", 2048, "[1, 2^20]", "numbers of each region"),
    integer("features.regions", 36, "[1, 65536]", "of a row at most"),
    choice("vectors.positions", None, "grid | axes | none", "a learned position per place, or one per row and one per "
        "column; None = grid for pictures, axes for sounds, none for features"),
    number("vectors.mask_rate", 0.5, "(0, 1)", "task=visual_pretraining: share of the vectors that are predicted"),
    number("vectors.mismatch_rate", 0.5, "[0, 1)", "task=visual_pretraining: share of rows with vectors of another"),

    # New words for the vocabulary of init_from.
    integer("extend.words", 0, "[0, 1000000]", "task=pretraining: words of the corpus that become tokens of the "
        "vocabulary of init_from; 0 = none"),
    text("extend.corpora", "", "entries of corpora whose words are looked at, comma-separated; empty = all"),
    integer("extend.least", 5, "[1, 2^31)", "occurrences of a word that can become a token"),

    # Learning from another model.
    text("distillation.teacher", "", "trained model that the run learns from: checkpoint, workdir, a model in another "
        "format or a name of the Hub; empty = none"),
    number("distillation.relations", 0.0, "[0, 1e6]", "weight of the relations between tokens, for any width"),
    number("distillation.soft", 1.0, "[0, 1e6]", "weight of the teacher's probabilities"),
    number("distillation.hidden", 0.0, "[0, 1e6]", "weight of the hidden states, through a projection"),
    number("distillation.hard", 1.0, "[0, 1e6]", "weight of the task's own loss"),
    number("distillation.temperature", 2.0, "[1, 1000]", "by which both models' logits are divided for soft"),
    text("distillation.relation_kinds", "queries,keys,values", "of queries, keys, values, attention; MiniLM: "
        "attention,values"),
    integer("distillation.relation_heads", None, "[1, 4096]", "parts of a vector; None = the teacher's heads, or "
        "fewer that divide both widths"),
    integer("distillation.teacher_layer", None, "[1, 4096]", "whose relations are learned; None = the last"),

    # What a run costs its machine: bert_jax/training/energy.py.
    choice("energy.meter", "none", "none | codecarbon | watts", "kWh and CO2e of the run, in its metrics: codecarbon "
        "(extra energy) reads counters or estimates; watts = energy.watts × time", "restart"),
    number("energy.watts", 0.0, "[0, 1e9]", "of all machines of the run together, for energy.meter=watts", "restart"),
    text("energy.country", "", "whose electricity it is, such as DEU (ISO 3166, needs the extra energy); empty = the "
        "world's", "restart"),
    number("energy.grams_per_kwh", None, "[0, 10000]", "CO2 equivalents of a kWh; None = of energy.country", "restart"),
)
# fmt: on
