"""Metrics of fine-tuning by the field's own tools: scikit-learn, SciPy, seqeval, which are imported at their first use.

Scores are fractions in [0, 1], correlations in [−1, 1]. What is undefined counts as 0.0, without a warning: precision
where nothing was predicted, recall where nothing was to be found, F1 where both hold, and any correlation with a
constant. A run that always predicts one class therefore scores 0, not nan: compare with `majority_baseline`.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from bert_jax.config import UserError

# What scikit-learn and seqeval put in place of 0/0; they document a number, but pyright infers a string.
_ZERO: Any = 0.0
_LEAVE_OUT: Any = np.nan  # of the mean over labels, which is nan if none is left

Scores = dict[str, float]
Table = dict[str, Scores]  # name → precision, recall, f1, support
LabelIds = Int[np.ndarray, " _"]
LabelSets = Bool[np.ndarray, "_ C"]
Probabilities = Float[np.ndarray, "N C"]
TagLists = Sequence[Sequence[str]]


def classification_scores(gold: LabelIds, predicted: LabelIds, labels: Sequence[str]) -> Scores:
    """Returns accuracy, macro_f1, micro_f1, mcc and, of two labels, `f1` of the second ("yes" in MRPC and QQP).

    `macro_f1` is the mean over the labels that occur in `gold` or `predicted`. Raises UserError for no examples, fewer
    than two labels, or an id without label.
    """
    from sklearn import metrics

    _check(gold, predicted, labels)
    scores = {"accuracy": float(metrics.accuracy_score(gold, predicted)), **_averaged_f1(gold, predicted)}
    # One class everywhere leaves the coefficient undefined; scikit-learn would also warn.
    several = len(np.union1d(gold, predicted)) > 1
    scores["mcc"] = float(metrics.matthews_corrcoef(gold, predicted)) if several else 0.0
    if len(labels) == 2:
        scores["f1"] = float(metrics.f1_score(gold, predicted, labels=[1], average="macro", zero_division=_ZERO))
    return scores


def names_of_classification(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the scores that `classification_scores` gives for these labels."""
    return "accuracy", "macro_f1", "micro_f1", "mcc", *(("f1",) if len(labels) == 2 else ())


def per_label_table(gold: LabelIds | LabelSets, predicted: LabelIds | LabelSets, labels: Sequence[str]) -> Table:
    """Returns precision, recall, f1 and support (count in `gold`) of every label, from ids or from sets of labels."""
    from sklearn import metrics

    _check(gold, predicted, labels)
    columns = metrics.precision_recall_fscore_support(gold, predicted, labels=range(len(labels)), zero_division=_ZERO)
    return _table(labels, columns)


def confusion(gold: LabelIds, predicted: LabelIds, labels: Sequence[str]) -> Int[np.ndarray, "C C"]:
    """Returns counts; the row is the gold label, the column the predicted one."""
    from sklearn import metrics

    _check(gold, predicted, labels)
    return metrics.confusion_matrix(gold, predicted, labels=range(len(labels)))


def regression_scores(gold: Float[np.ndarray, " N"], predicted: Float[np.ndarray, " N"]) -> Scores:
    """Returns pearson, spearman and mse. Correlations are 0.0 where all of `gold` or all of `predicted` is one number.

    Raises UserError for no examples or a prediction that is not finite.
    """
    from scipy import stats

    _check(gold, predicted)
    if bad := int((~np.isfinite(predicted)).sum()):
        raise UserError(f"{bad:,} of {len(predicted):,} predictions are not finite: train with a lower learning rate")
    gold, predicted = gold.astype(np.float64), predicted.astype(np.float64)
    correlations: Any = (0.0, 0.0)
    if np.ptp(gold) > 0 and np.ptp(predicted) > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)  # usual in the first steps of a run
            correlations = (stats.pearsonr(gold, predicted)[0], stats.spearmanr(gold, predicted)[0])
    pearson, spearman = np.nan_to_num(correlations).tolist()
    return {"pearson": pearson, "spearman": spearman, "mse": float(np.mean((gold - predicted) ** 2))}


def multilabel_scores(
    gold: LabelSets, probabilities: Probabilities, thresholds: Float[np.ndarray, " C"], labels: Sequence[str]
) -> Scores:
    """Returns micro_f1, macro_f1 and subset_accuracy (all labels of an example right); a label is given iff p ≥ its
    threshold.

    `macro_f1` is the mean over the labels that occur in `gold` or are given at all. Raises UserError for no examples
    or a single label, which scikit-learn would take for labels 0 and 1.
    """
    from sklearn import metrics

    _check(gold, probabilities, labels)
    given = probabilities >= thresholds
    return {**_averaged_f1(gold, given), "subset_accuracy": float(metrics.accuracy_score(gold, given))}


def tune_thresholds(gold: LabelSets, probabilities: Probabilities) -> Float[np.ndarray, " C"]:
    """Returns a threshold per label such that together they have the best micro F1; 0.5 for a label without example.

    Exact, by Dinkelbach's method: F1 is a ratio of sums over the labels, and 2·found − F1·given is best for all where
    it is best for each. A threshold lies half-way between two scores; of equal choices it is the highest. A label whose
    scores are uninformative is given to no example; maximising the F1 of each label alone would give it to most (Yang
    2001, A study of thresholding strategies for text categorization). Meant for the development set, whose own scores
    are then slightly too good.
    """
    _check(gold, probabilities)
    order = np.argsort(-probabilities, axis=0, kind="stable")
    ranked = np.take_along_axis(probabilities.astype(np.float64), order, axis=0)
    nothing = np.zeros((1, gold.shape[1]), np.int64)
    found = np.concatenate([nothing, np.cumsum(np.take_along_axis(gold, order, axis=0), axis=0)])  # of the first n
    number = np.arange(len(gold) + 1)[:, None]
    splits = np.concatenate([nothing == 0, ranked[1:] < ranked[:-1], nothing == 0])  # equal scores stay together
    f1, before, best = 0.0, -1.0, nothing[0]
    while f1 > before:
        before = f1
        best = np.argmax(np.where(splits, 2 * found - f1 * number, -np.inf), axis=0)  # how many are given each label
        right = np.take_along_axis(found, best[None], axis=0).sum()
        f1 = 2 * right / max(1, best.sum() + gold.sum())
    edges = np.concatenate([np.maximum(1.0, ranked[:1]), ranked, np.minimum(0.0, ranked[-1:])])
    above, below = (np.take_along_axis(edges, at[None], axis=0)[0] for at in (best, best + 1))
    middle = (above + below) / 2
    between = np.where(middle > below, middle, np.where(best > 0, above, np.nextafter(above, np.inf)))
    return np.where(gold.any(axis=0), between, 0.5)


def entity_scores(gold: TagLists, predicted: TagLists) -> Scores:
    """Returns entity_precision, entity_recall, entity_f1 over all entities (micro), and the accuracy of tags.

    One list of BIO tags per sentence. An entity is right if its type, first and last word are. Strict: it starts with
    B- and nothing else, so an I- that continues nothing is no entity and a tagger must learn where entities begin.
    (CoNLL's conlleval lets such an I- begin one, as IOB1 needs; of sequences that are valid both give the same score.)
    Raises UserError for no sentences and for tags that are not BIO; in `gold` an I- must continue its entity.
    """
    from seqeval.metrics import accuracy_score
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    lists = _tag_lists(gold, predicted)
    micro: Any = precision_recall_fscore_support(*lists, average="micro", scheme=IOB2, zero_division=_ZERO)
    names = ("entity_precision", "entity_recall", "entity_f1", "accuracy")
    return {name: float(score) for name, score in zip(names, (*micro[:3], accuracy_score(*lists)), strict=True)}


def entity_table(gold: TagLists, predicted: TagLists) -> Table:
    """Returns precision, recall, f1 and support of every entity type that occurs in `gold` or `predicted`, by name."""
    from seqeval.metrics.v1 import precision_recall_fscore_support, unique_labels
    from seqeval.scheme import IOB2

    lists = _tag_lists(gold, predicted)
    columns = precision_recall_fscore_support(*lists, average=None, scheme=IOB2, zero_division=_ZERO)
    return _table(unique_labels(*lists, IOB2), columns)


def majority_baseline(gold: LabelIds) -> float:
    """Returns the accuracy of always predicting the most frequent label. A run that stays at it has failed."""
    _check(gold, gold)
    return float(np.bincount(gold).max() / len(gold))


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation (n − 1 in the divisor); the latter is nan for a single value."""
    _check(values, values)
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _averaged_f1(gold: LabelIds | LabelSets, predicted: LabelIds | LabelSets) -> Scores:
    from sklearn import metrics

    macro = metrics.f1_score(gold, predicted, average="macro", zero_division=_LEAVE_OUT)
    micro = metrics.f1_score(gold, predicted, average="micro", zero_division=_ZERO)
    return {"macro_f1": 0.0 if np.isnan(macro) else float(macro), "micro_f1": float(micro)}


def _tag_lists(gold: TagLists, predicted: TagLists) -> tuple[list[list[str]], list[list[str]]]:
    """Returns both as the lists that seqeval expects. Raises UserError if they do not fit together or are not BIO."""
    _check(gold, predicted)
    if not any(gold):
        raise UserError(f"there is nothing to score: {len(gold):,} sentences without a word")
    for number, (tags, given) in enumerate(zip(gold, predicted, strict=True)):
        if len(tags) != len(given):
            raise UserError(f"predicted sentence {number} has {len(given)} tags, gold {len(tags)}: tag every word")
        for word, (before, tag, other) in enumerate(zip(["O", *tags], tags, given, strict=False)):
            for name, one in (("gold", tag), ("predicted", other)):
                if one != "O" and not one.startswith(("B-", "I-")):
                    place = f"{name} sentence {number}, word {word}"
                    raise UserError(f"{place}: tag {one!r} is not BIO: use O, B-type and I-type")
            if tag.startswith("I-") and before not in (tag, "B" + tag[1:]):
                place = f"gold sentence {number}, word {word}"
                raise UserError(f"{place}: {tag} after {before} continues nothing: begin an entity with B{tag[1:]}")
    return [list(tags) for tags in gold], [list(tags) for tags in predicted]


def _check(gold: Any, predicted: Any, labels: Sequence[str] | None = None) -> None:
    """Raises UserError for no examples or not one prediction for each; with `labels` also for fewer than two, and for
    an id that is not the number of one."""
    if len(gold) != len(predicted):
        raise UserError(f"{len(predicted):,} predictions for {len(gold):,} examples: predict each of them once")
    if not len(gold):
        raise UserError("there is nothing to score: the set is empty")
    if labels is None:
        return
    if len(labels) < 2:
        raise UserError(f"{len(labels)} label ({', '.join(labels)}): a choice needs two or more, such as yes and no")
    for name, ids in (("gold", gold), ("predicted", predicted)):
        if ids.ndim == 1 and (ids.min() < 0 or ids.max() >= len(labels)):
            raise UserError(f"{name} label ids go from {ids.min()} to {ids.max()}: {len(labels)} labels are known")


def _table(names: Sequence[str], columns: Any) -> Table:
    lines = zip(names, np.transpose(columns).tolist(), strict=True)
    return {name: dict(zip(("precision", "recall", "f1", "support"), line, strict=True)) for name, line in lines}


def guesser_scores(counts: Float[np.ndarray, " C"]) -> dict[str, float]:
    """Returns the loss in nats and the accuracy of the best guesser without context, who knows how often each label
    occurs."""
    share = counts[counts > 0] / np.sum(counts)
    return {"unigram_entropy": float(-np.sum(share * np.log(share))), "majority_accuracy": float(share.max())}


def wilson_interval(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a proportion (Wilson 1927), which stays inside [0, 1] and holds for small
    n."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(centre - half), float(centre + half)
