"""What tutorials get wrong, shown on a BERT of two layers: the wrong formula beside the right one, and what differs.

docs/tutorials/en/what_tutorials_get_wrong.md names these tests, and others of this repository.
"""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import bert_jax
from bert_jax.config import UserError
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.models.bert import Bert
from bert_jax.models.config import BertConfig
from bert_jax.models.encoder import sinusoids
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.losses import cross_entropy_sums
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.checkpoint import write_checkpoint
from bert_jax.training.parameters import flatten, unflatten
from experiments import base, classify

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "the dog man bites plays film is not good bad very river bank of play ##ing ##s 我 爱 北 京 大 学 . ,"
WORDS = TEXT.split()
TOKENIZER = make_wordpiece([*SPECIAL, *WORDS], "test", True, None, True)
HEAD = 16  # columns of one head


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A BERT of random parameters: loaded, and as arrays by name."""
    config = base.get_config()
    config.model.update(size=None, hidden_size=2 * HEAD, num_attention_heads=2, num_hidden_layers=2, dtype="float32")
    config.model.update(intermediate_size=64, embedding_size=2 * HEAD)
    config.model.max_position_embeddings = config.data.sequence_length = 32
    task = Pretraining(config, TOKENIZER, None)
    shapes, random = nnx.eval_shape(lambda: task.init(nnx.Rngs(params=0))), np.random.default_rng(0)
    parameters = {
        name: (name.endswith("scale") + random.normal(0, 0.13, leaf.shape)).astype(np.float32)
        for name, leaf in flatten(shapes).items()
    }
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    write_checkpoint(folder, dict(parameters), {"step": 1, "config": config.to_dict(), "task": {}}, TOKENIZER)
    return SimpleNamespace(
        bert=bert_jax.load(folder), parameters=parameters, config=config, task=task, graphdef=nnx.split(shapes)[0]
    )


@pytest.fixture(scope="module")
def gradients(model):
    """The gradients of both losses for two rows of 8 tokens, one of which is masked."""
    ids = np.array([TOKENIZER("the dog plays", "the film").ids, TOKENIZER("the man bites", "the dog").ids], np.int32)
    assert ids.shape == (2, 8)
    batch = {
        "input_ids": np.where(np.arange(8) == 3, TOKENIZER.mask_id, ids),
        "token_type_ids": np.tile((np.arange(8) > 4).astype(np.int32), (2, 1)),
        "position_ids": np.tile(np.arange(8, dtype=np.int32), (2, 1)),
        "sequence_ids": np.ones((2, 8), np.int32),
        "first_tokens": np.zeros((2, 1), np.int32),
        "masked_positions": np.full((2, 1), 3, np.int32),
        "masked_labels": ids[:, 3:4],
        "masked_weights": np.ones((2, 1), np.float32),
        "next_sentence_labels": np.array([[1], [0]], np.int32),
        "next_sentence_weights": np.ones((2, 1), np.float32),
        "corpus_ids": np.zeros(2, np.int32),
    }

    @jax.jit
    def of_each(parameters, batch):
        def losses(parameters):
            sums = model.task.sums(unflatten(model.graphdef, parameters), batch, None, {})
            return sums["mlm_loss"][0], sums["nsp_loss"][0]

        pull = jax.vjp(losses, parameters)[1]
        return [pull((jnp.float32(objective == 0), jnp.float32(objective == 1)))[0] for objective in (0, 1)]

    mlm, nsp = jax.tree.map(np.asarray, of_each(model.parameters, batch))
    return SimpleNamespace(mlm=mlm, nsp=nsp, input_ids=batch["input_ids"])


def normalised(model, x, name="embeddings/layer_norm"):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * model.parameters[f"{name}/scale"] + model.parameters[f"{name}/bias"]


def first_scores(model, hidden):
    """The products of queries and keys of the first layer, [H, L, L], before anything is divided."""

    def heads(name):
        kernel, bias = (model.parameters[f"encoder/layers/attention/{name}/{kind}"][0] for kind in ("kernel", "bias"))
        return (hidden @ kernel + bias).reshape(len(hidden), -1, HEAD)

    return np.einsum("phk,lhk->hpl", heads("query"), heads("key"))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_scores_are_divided_by_the_root_of_the_head_size(model):
    out = model.bert.encode("the dog bites the man", hidden_states=True, attentions=True)
    weights, scores = out.attentions[0][0], first_scores(model, out.hidden_states[0][0])
    np.testing.assert_allclose(weights, softmax(scores / math.sqrt(HEAD)), atol=1e-5)
    wrong = softmax(scores)
    assert np.abs(weights - wrong).max() > 0.2
    assert wrong.max(-1).mean() > weights.max(-1).mean() + 0.1  # each query looks at hardly more than one key
    # The products of vectors of independent columns of variance 1 have the variance K.
    one, other = np.random.default_rng(0).standard_normal((2, 20_000, HEAD))
    assert (one * other).sum(-1).var() == pytest.approx(HEAD, rel=0.05)


def test_padding_is_hidden_before_the_softmax_and_not_by_a_factor(model):
    """A score of 0 is no small score: exp(0) = 1."""
    out = model.bert.encode(["the dog bites the man", "dog"], hidden_states=True, attentions=True)
    assert out.attentions[0][1, :, :3, 3:].max() == 0
    scores = first_scores(model, out.hidden_states[0][1]) / math.sqrt(HEAD)
    real = np.arange(7) < 3
    np.testing.assert_allclose(out.attentions[0][1, :, :3], softmax(np.where(real, scores, -1e9))[:, :3], atol=1e-5)
    assert softmax(scores * real)[:, :3, 3:].sum(-1).mean() > 0.3  # of the attention would go to padding


def test_positions_are_added_before_the_first_layer(model):
    words, positions, types = (
        model.parameters[f"embeddings/{name}/embedding"] for name in ("word", "position", "token_type")
    )
    forward = model.bert.encode("dog bites man", hidden_states=True, attentions=True)
    backward = model.bert.encode("man bites dog", attentions=True)
    ids = forward.input_ids[0]
    expected = normalised(model, words[ids] + positions[: len(ids)] + types[0])
    np.testing.assert_allclose(forward.hidden_states[0][0], expected, atol=1e-5)
    # The attention of the two orders differs. It would not, if positions came after it.
    swap = np.ix_([0, 1], [0, 3, 2, 1, 4], [0, 3, 2, 1, 4])
    assert np.abs(forward.attentions[0][0] - backward.attentions[0][0][swap]).max() > 0.05
    one, other = (first_scores(model, normalised(model, words[row] + types[0])) for row in (ids, backward.input_ids[0]))
    np.testing.assert_allclose(one, other[swap], atol=1e-5)


def test_positions_are_a_table_that_is_trained(model, gradients):
    table = model.parameters["embeddings/position/embedding"]
    gradient = gradients.mlm["embeddings/position/embedding"]
    assert table.shape == (32, 2 * HEAD)
    assert np.abs(table - sinusoids(*table.shape)).max() > 0.5
    assert (np.abs(gradient[:8]).max(axis=1) > 1e-6).all()  # the positions of these rows
    assert not gradient[8:].any()


def test_more_tokens_than_positions_are_an_error(model):
    text = " ".join(["dog"] * 50)
    assert model.bert.encode(text).last_hidden_state.shape[1] == 32  # cut, with a warning
    with pytest.raises(UserError, match="max_length is 40; this model takes up to 32 tokens"):
        model.bert.encode(text, max_length=40)


def test_word_vectors_are_trained_and_are_the_output_too(model, gradients):
    gradient = gradients.mlm["embeddings/word/embedding"]
    seen = np.isin(np.arange(TOKENIZER.vocab_size), gradients.input_ids)
    assert np.abs(gradient[seen]).max(axis=1).min() > 1e-5  # as input
    assert np.abs(gradient[~seen]).max(axis=1).min() > 1e-6  # as output: a word that was not the answer
    assert not [name for name in model.parameters if name.startswith("heads/mlm/decoder")]


def test_heads_share_the_hidden_size():
    """Eight heads have as many parameters as one: each gets an eighth of the columns."""
    sizes = []
    for heads in (1, 2, 8):
        config = BertConfig(50, hidden_size=64, num_attention_heads=heads, num_hidden_layers=1, embedding_size=64)
        shapes = nnx.state(nnx.eval_shape(lambda config=config: Bert(config, rngs=nnx.Rngs(params=0))))
        sizes.append(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)))
        assert config.head_width == 64 // heads
    assert len(set(sizes)) == 1


def test_hidden_states_begin_with_the_embeddings(model):
    out = model.bert.encode("the dog plays", hidden_states=True, attentions=True)
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2  # a model of two layers
    np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)
    assert np.abs(out.hidden_states[0] - out.last_hidden_state).max() > 0.5


def test_the_pooled_vector_is_neither_that_of_cls_nor_the_mean(model):
    out = model.bert.encode("the dog plays")
    first, mean = out.last_hidden_state[0, 0], out.last_hidden_state[0].mean(axis=0)
    pooled = np.tanh(first @ model.parameters["pooler/kernel"] + model.parameters["pooler/bias"])
    np.testing.assert_allclose(out.pooled[0], pooled, atol=1e-5)
    assert np.abs(out.pooled[0] - first).max() > 0.2 and np.abs(out.pooled[0] - mean).max() > 0.2


def test_the_pooler_learns_from_pairs_of_sentences_alone(gradients):
    """Without next sentence prediction it stays as it was initialised."""
    assert not gradients.mlm["pooler/kernel"].any() and not gradients.mlm["pooler/bias"].any()
    assert np.abs(gradients.nsp["pooler/kernel"]).max() > 1e-3


def test_two_rows_never_see_each_other(model):
    """A long text that is cut into two rows is two texts."""
    first, second = "the dog bites", "the man plays"
    together = model.bert.encode([first, second]).last_hidden_state
    for row, text in zip(together, (first, second), strict=True):
        np.testing.assert_allclose(row, model.bert.encode(text).last_hidden_state[0], atol=1e-5)
    in_one_row = model.bert.encode(f"{first} {second}").last_hidden_state[0]
    assert np.abs(in_one_row[1:4] - together[0, 1:4]).max() > 0.05


def test_both_texts_of_a_pair_see_each_other(model):
    out = model.bert.encode("the dog", "the man plays", attentions=True)
    weights = out.attentions[0][0]
    assert weights[:, :4, 4:].min() > 0 and weights[:, 4:, :4].min() > 0
    alone = model.bert.encode("the dog").last_hidden_state[0]
    assert np.abs(out.last_hidden_state[0, :3] - alone[:3]).max() > 0.05


def test_a_text_alone_has_type_0(model):
    encoding = TOKENIZER("the dog")
    assert encoding.type_ids == [0, 0, 0, 0] and TOKENIZER("the", "dog").type_ids == [0, 0, 0, 1, 1]
    words, positions, types = (
        model.parameters[f"embeddings/{name}/embedding"] for name in ("word", "position", "token_type")
    )
    right, wrong = (normalised(model, words[encoding.ids] + positions[:4] + types[kind]) for kind in (0, 1))
    found = model.bert.encode("the dog", hidden_states=True).hidden_states[0][0]
    np.testing.assert_allclose(found, right, atol=1e-5)
    assert np.abs(found - wrong).max() > 0.1


def test_a_mask_is_filled_from_the_whole_row(model):
    """Each word of the row, on either side and not only next to it, changes the probabilities."""
    text = "the dog bites the man [MASK] is not very good film"
    words, before = text.split(), dict(model.bert.fill_mask(text, top_k=10)[0])
    for place in (0, 2, 8, 10):  # none of them is a neighbour of the mask
        [after] = model.bert.fill_mask(" ".join([*words[:place], "bank", *words[place + 1 :]]), top_k=10)
        assert max(abs(p - before.get(word, 0)) for word, p in after) > 1e-4


def test_what_stands_left_depends_on_what_stands_right(model):
    """So a BERT cannot write from left to right: the words that it has not written yet are part of each vector."""
    good, bad = (model.bert.encode(f"the film is {word}").last_hidden_state[0] for word in ("good", "bad"))
    assert np.abs(good[1:4] - bad[1:4]).max(axis=-1).min() > 0.01


def test_the_loss_is_that_of_the_chosen_tokens():
    """A place that was not chosen has weight 0: neither its label nor what the model says there makes a difference."""
    logits = np.zeros((2, 4, TOKENIZER.vocab_size), np.float32)
    labels, weights = np.array([[5, 6, 0, 0], [7, 0, 0, 0]]), np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.float32)
    others, elsewhere = (
        labels + (weights == 0) * 9,
        logits + 50 * np.eye(TOKENIZER.vocab_size)[9] * (weights == 0)[..., None],
    )
    for one in (labels, others):
        for made in (logits, elsewhere):
            loss, weight = cross_entropy_sums("mlm", *map(jnp.asarray, (made.astype(np.float32), one, weights)))[
                "mlm_loss"
            ]
            assert float(weight) == 3
            assert float(loss) / 3 == pytest.approx(math.log(TOKENIZER.vocab_size), rel=1e-5)


def test_a_softmax_before_the_loss_keeps_it_high():
    """Cross-entropy takes logits. On probabilities, the loss of a perfect classifier is ln(1 + 1/e) = 0.313."""
    labels, weights = jnp.asarray([0, 1]), jnp.ones(2)
    logits = jnp.asarray([[30.0, -30.0], [-30.0, 30.0]])
    right = cross_entropy_sums("x", logits, labels, weights)["x_loss"]
    wrong = cross_entropy_sums("x", jax.nn.softmax(logits), labels, weights)["x_loss"]
    assert float(right[0]) / 2 < 1e-6
    assert float(wrong[0]) / 2 == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=6))
def test_a_softmax_cannot_give_two_labels(logits):
    """Whatever the logits, the second largest probability is at most one half; sigmoids are independent."""
    shares = softmax(np.array(logits))
    assert sorted(shares)[-2] <= 0.5
    assert (1 / (1 + np.exp(-np.array([5.0, 5.0])))).min() > 0.99


def test_labels_that_are_missing_are_an_error_before_the_first_step(tmp_path):
    """There is no loss without labels; it is said when the data is read, and with the names of the columns."""
    (tmp_path / "train.csv").write_text("review,stars\na good film,1\na bad film,0\n")
    config = classify.get_config()
    config.data.update(train=str(tmp_path / "train.csv"), validation=str(tmp_path / "train.csv"), text="review")
    for label, message in (("label", "label"), ("", "label")):
        config.data.label = label
        with pytest.raises(UserError, match=message):
            Classification(config, TOKENIZER, None).load()


def test_a_mean_over_padding_is_another_vector(model):
    texts = ["dog", "the man plays the very good film"]
    out = model.bert.encode(texts)
    mask = out.attention_mask[:, :, None]
    right = (out.last_hidden_state * mask).sum(axis=1) / mask.sum(axis=1)
    np.testing.assert_allclose(model.bert.embed(texts), right, atol=1e-5)
    wrong = out.last_hidden_state.mean(axis=1)  # the short text is divided by the length of the long one
    np.testing.assert_allclose(wrong[0], right[0] * 3 / 9, atol=1e-5)


def test_dropout_is_off_unless_it_is_asked_for(model):
    text = "the dog bites the man"
    one, other = (model.bert.encode(text).last_hidden_state for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_accuracy_on_rare_labels_says_little():
    """Whoever always answers "no" is right in 95 of 100 cases and finds none of the other five."""
    from bert_jax.tasks.scores import classification_scores, majority_baseline

    gold, nothing = np.repeat([0, 1], [95, 5]), np.zeros(100, int)
    scores = classification_scores(gold, nothing, ["no", "yes"])
    assert scores["accuracy"] == majority_baseline(gold) == 0.95
    assert scores["f1"] == scores["mcc"] == 0


def test_special_tokens_are_added_by_the_tokenizer():
    assert TOKENIZER.decode(TOKENIZER("the dog").ids) == "the dog"
    tokens = [TOKENIZER.token(i) for i in TOKENIZER("the dog").ids]
    assert tokens == ["[CLS]", "the", "dog", "[SEP]"]
    twice = [TOKENIZER.token(i) for i in TOKENIZER("[CLS] the dog [SEP]").ids]
    assert twice == ["[CLS]", "[CLS]", "the", "dog", "[SEP]", "[SEP]"]


def test_a_word_is_not_a_token():
    assert [TOKENIZER.token(i) for i in TOKENIZER("playing").ids[1:-1]] == ["play", "##ing"]
    text = "playing " * 20
    assert len(text.split()) == 20 and len(TOKENIZER(text).ids) == 42


def test_spaces_between_chinese_words_change_nothing():
    """WordPiece makes each Chinese character a token of its own: to segment words beforehand is work for nothing."""
    plain, segmented = TOKENIZER("我爱北京大学"), TOKENIZER("我 爱 北京 大学")
    assert plain.ids == segmented.ids
    assert [TOKENIZER.token(i) for i in plain.ids[1:-1]] == list("我爱北京大学")


def test_stop_words_hold_the_negation():
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    def without_stop_words(text):
        return " ".join(word for word in text.split() if word not in ENGLISH_STOP_WORDS)

    assert without_stop_words("the film is not good") == without_stop_words("the film is good")
    assert TOKENIZER("the film is not good").ids != TOKENIZER("the film is good").ids


def test_ids_belong_to_one_vocabulary():
    """The same words in another order: every id is known, and means another word."""
    other = make_wordpiece([*SPECIAL, *reversed(WORDS)], "test", True, None, True)
    ids = TOKENIZER("the dog bites the man").ids
    assert len(ids) == 7 and other.vocab_size == TOKENIZER.vocab_size
    assert other.decode(ids) != "the dog bites the man" and TOKENIZER.decode(ids) == "the dog bites the man"


def test_case_is_the_vocabularys():
    """A cased vocabulary has pieces for both spellings; lower-casing for it gives other tokens."""
    cased = make_wordpiece([*SPECIAL, "Turkey", "turkey"], "test", False, False, True)
    assert cased("Turkey").ids != cased("turkey").ids
    assert TOKENIZER("The Dog").ids == TOKENIZER("the dog").ids
