"""Several tasks, one encoder: each head as that of a single task, turns, resuming, what moves and what does not."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bert_jax
from bert_jax.config import UserError
from bert_jax.convert.conversion import convert
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.entries import add_entry, of_task
from bert_jax.experiment import set_options
from bert_jax.inference.fill_mask import FillMask
from bert_jax.inference.open import open_model
from bert_jax.inference.predictor import Predictor
from bert_jax.lab.inspect.reading import insides
from bert_jax.lab.sweep.estimate import _steps
from bert_jax.run import check_run, evaluate_checkpoint, inherit, run
from bert_jax.sharding import make_mesh, to_mesh
from bert_jax.tasks import task_class
from bert_jax.tasks.multitask import MultiTask
from bert_jax.tasks.task import description_of
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.evaluation import make_evaluation
from bert_jax.training.metrics_log import read_metrics
from bert_jax.training.optimizer import make_optimizer, make_schedule
from bert_jax.training.parameters import flatten, of_one_task, structure, with_copies
from bert_jax.training.step import TrainState, init_state, make_train_step
from experiments import finetune
from tests import processes

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
TOKENIZER = make_wordpiece(VOCABULARY, "test", True, None, True)
KINDS = {"first": "classification", "lm": "pretraining", "pick": "multiple_choice", "qa": "span_qa", "tags": "tagging"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Examples of every family, by the names of KINDS: `data` of its task."""
    folder, random = tmp_path_factory.mktemp("multitask"), np.random.default_rng(0)
    words = [random.choice(LETTERS, random.integers(3, 8)).tolist() for _ in range(48)]
    texts = [{"text": " ".join(one), "label": "late" if one[0] > "m" else "early"} for one in words]
    tags = [{"words": one, "tags": ["B-V" if word in "aeiou" else "O" for word in one]} for one in words]
    picks = [{"text": "a", "e0": one[0], "e1": one[1], "label": i % 2} for i, one in enumerate(words)]
    questions = [
        {"id": str(i), "question": "a b", "context": " ".join(one), "answers": [{"text": one[1], "answer_start": 2}]}
        for i, one in enumerate(words)
    ]
    squad = {"data": [{"title": "t", "paragraphs": [{"context": q["context"], "qas": [q]} for q in questions]}]}
    (folder / "qa.json").write_text(json.dumps(squad))
    for language, letters in {"de": LETTERS[:16], "en": LETTERS[10:]}.items():
        documents = [". ".join(" ".join(random.choice(letters, 6)) for _ in range(12)) for _ in range(12)]
        write(folder / f"{language}.jsonl", [{"text": f"{text}."} for text in documents])
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    files = {"first": write(folder / "texts.jsonl", texts), "tags": write(folder / "tags.jsonl", tags)}
    files |= {"pick": write(folder / "pick.jsonl", picks), "qa": str(folder / "qa.json")}
    own = {name: {"train": file, "validation": file} for name, file in files.items()}
    own["first"] |= {"test": files["first"]}
    own["tags"] |= {"text": "words", "label": "tags", "long_texts": "windows"}
    own["pick"] |= {"choices": "e0,e1"}
    own["lm"] = {"prepared": str(folder / "prepared"), "workers": 1, "max_predictions_per_sequence": 4}
    own["lm"] |= {"pairing": "none", "packing": True, "validation_share": 0.2, "test_share": 0.0}
    own["folder"] = folder
    return own


def make_config(data, *names, **options):
    """Returns the config of the tasks of these names. The options are those of `multitask`."""
    config = finetune.get_config("multitask", "mean")
    config.model.update(size="tiny", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    config.model.update(dtype="float32", max_position_embeddings=32)
    config.data.update(sequence_length=16, buckets=1, prefetch=2, packing=False)
    config.data.update(vocab_file=str(data["folder"] / "vocab.txt"), max_query_length=3, window_stride=4)
    config.optimizer.update(learning_rate=3e-3, warmup_share=None, warmup_steps=2, decay_steps=24)
    config.train.update(epochs=None, steps=24, batch_size=8, log_every=4, peak_tflops=1.0)
    config.eval.update(batch_size=16, every=24)
    config.checkpoint.update(every=24)
    config.mesh.data = 1
    config.multitask.update({"sampling": "temperature", "temperature": 10.0} | options)
    for name in names:
        add_entry(config, f"tasks.{name}", task=KINDS[name], data=data[name])
    for language in ("de", "en") if "lm" in names else ():
        add_entry(config, f"corpora.{language}", corpus="jsonl", files=str(data["folder"] / f"{language}.jsonl"))
    return config


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return run(make_config(data, "first", "lm", "tags"), tmp_path_factory.mktemp("trained") / "mt")


def with_data(config):
    """Returns the task as a run from scratch makes it."""
    source = inherit(config, Path("nowhere"))
    check_run(config, TOKENIZER.vocab_size)
    return task_class(config.task).with_data(config, source)


def parameters_of(task):
    return jax.jit(lambda: flatten(task.init(nnx.Rngs(params=1))))()


def test_each_head_is_that_of_a_single_task(data):
    """Evaluations of all five families, together and each alone, with the same parameters; then of fewer together."""
    config = make_config(data, *KINDS)
    task, mesh = with_data(config), make_mesh(config.mesh)
    parameters = parameters_of(task)
    evaluate = make_evaluation(task, structure(task.init)[0], config, mesh, {})
    together = evaluate(parameters, "validation", task.description())
    mains = {"first": "accuracy", "lm": "mlm_accuracy", "pick": "accuracy", "qa": "f1", "tags": "entity_f1"}
    assert task.main_metrics == mains
    assert set(together.metrics) == set(task.metric_names("validation"))
    for name, member in task.members.items():
        own, alone = of_one_task(parameters, name), of_task(config, name)
        evaluate_one = make_evaluation(member, structure(member.init)[0], alone, mesh, {})
        metrics = evaluate_one(own, "validation", member.description()).metrics
        assert {f"{name}/{key}" for key in metrics} == {key for key in together.metrics if key.startswith(f"{name}/")}
        for key, value in metrics.items():
            assert together.metrics[f"{name}/{key}"] == pytest.approx(value, abs=1e-6), (name, key)
    values = [together.metrics[f"{name}/{main}"] / (100 if name == "qa" else 1) for name, main in mains.items()]
    assert together.metrics["mean"] == pytest.approx(np.mean(values))
    assert together.metrics["loss"] == pytest.approx(np.mean([together.metrics[f"{name}/loss"] for name in mains]))
    fewer = with_data(make_config(data, "first", "tags"))
    names = structure(fewer.init)[1]
    evaluate = make_evaluation(fewer, structure(fewer.init)[0], fewer.config, mesh, {})
    found = evaluate({name: parameters[name] for name in names}, "validation", fewer.description()).metrics
    assert {key: found[key] for key in found if "/" in key} == {
        key: value for key, value in together.metrics.items() if key.startswith(("first/", "tags/"))
    }


def test_a_step_is_that_of_the_single_task_and_leaves_other_heads_alone(data):
    config = make_config(data, "first", "tags")
    config.tasks.first.weight = 0.5
    task, mesh, key = with_data(config), make_mesh(config.mesh), jax.random.key(config.seed)
    assert task.objectives == {"first/loss": 0.5, "tags/loss": 1.0}
    schedule = make_schedule(config.optimizer, 24)
    optimizer = make_optimizer(config.optimizer, schedule)
    step = make_train_step(task, structure(task.init)[0], optimizer, schedule, mesh)
    batches, by_task = task.train_batches(0, 0, 1), {}
    while len(by_task) < 2:
        batch = next(batches)
        by_task.setdefault("tags" if "task:tags" in batch else "first", to_mesh(mesh, batch))
    batches.close()
    state = init_state(task, optimizer, 0, mesh)
    before = copy(state)
    after, sums = step(state, {}, by_task["tags"], key)
    member, own = task.members["tags"], of_one_task(before.parameters, "tags")
    alone = make_train_step(member, structure(member.init)[0], optimizer, schedule, mesh)
    tagged = {name: x for name, x in by_task["tags"].items() if name != "task:tags"}
    expected, own_sums = alone(TrainState(before.step, copy(own), optimizer.init(own)), {}, tagged, key)
    assert float(sums["tags/loss"][0]) == pytest.approx(float(own_sums["loss"][0]), rel=1e-6)
    for name, x in of_one_task(after.parameters, "tags").items():
        np.testing.assert_allclose(x, expected.parameters[name], rtol=1e-6, atol=1e-8, err_msg=name)
    assert not any(name.startswith("heads/first/") for name in changed(before.parameters, after.parameters))
    middle = copy(after)
    last, _ = step(after, {}, by_task["first"], key)
    moved = changed(middle.parameters, last.parameters)
    heads = {f"heads/first/classifier/{name}" for name in ("kernel", "bias")}
    assert {name for name in moved if name.startswith("heads/")} == heads
    assert "encoder/layers/attention/query/kernel" in moved
    for old, new in zip(moments(middle), moments(last), strict=True):  # which do not decay while a head is idle
        assert {name for name in changed(old, new) if name.startswith("heads/")} == heads
        assert all(np.any(old[f"heads/tags/classifier/{name}"]) for name in ("kernel", "bias"))


def changed(before, after):
    return {name for name in before if np.any(before[name] != after[name])}


def copy(state):
    """A step gives the memory of its state away."""
    return jax.tree.map(jnp.copy, state)


def moments(state):
    is_adam = lambda part: hasattr(part, "mu")  # noqa: E731
    [adam] = filter(is_adam, jax.tree.leaves(state.optimizer, is_leaf=is_adam))
    return adam.mu, adam.nu


def test_a_run_logs_each_task_and_the_mean(trained):
    lines = read_metrics(trained.workdir / "metrics.jsonl")
    train = [line for line in lines if line["split"] == "train"]
    assert {name for line in train for name in line} >= {"loss", "first/loss", "lm/mlm_loss", "tags/loss", "grad_norm"}
    languages = {"lm/de/mlm_loss", "lm/en/mlm_loss"}
    assert {"mean", "first/accuracy", "lm/mlm_accuracy", "tags/entity_f1"} | languages <= trained.best.keys()
    assert trained.test.keys() >= {"first/accuracy"} and "tags/loss" not in trained.test
    records = predictions(trained)
    assert {record["task"] for record in records} == {"first", "tags"}
    page = (trained.workdir / "report.html").read_text()
    assert "first: " in page and "tags: " in page and "share of the batches" in page


def predictions(result):
    return [json.loads(line) for line in (result.workdir / "predictions" / "validation.jsonl").read_text().splitlines()]


def test_it_resumes_in_mid_epoch_to_the_bit(trained, data, tmp_path):
    config = make_config(data, "first", "lm", "tags")
    config.train.steps = 10
    run(config, tmp_path / "again")
    config = make_config(data, "first", "lm", "tags")
    run(config, tmp_path / "again")
    once, again = (read_checkpoint(find_checkpoint(str(folder))) for folder in (trained.workdir, tmp_path / "again"))
    assert once.run["data"] == again.run["data"]
    for item in ("parameters", "optimizer"):
        assert once.run["checksums"][item] == again.run["checksums"][item]
    positions = once.run["data"]["tasks"]
    assert sum(position["step"] for position in positions.values()) == 24
    assert min(position["step"] for position in positions.values()) >= 6  # nobody starves


def test_one_task_of_a_checkpoint_is_a_model_of_its_own(trained, data, tmp_path):
    rows = [{"text": "z a b"}, {"text": "a b c"}]
    predict = Predictor(str(trained.workdir), task_name="first")
    found = predict(rows)
    assert [set(one["probabilities"]) for one in found] == [{"early", "late"}] * 2
    records = predictions(trained)
    texts = [record for record in records if record["task"] == "first"]
    again = predict([{"text": texts[0]["text"]}])[0]
    assert again["probabilities"] == pytest.approx(texts[0]["prediction"]["probabilities"], abs=1e-5)
    assert len(FillMask(str(trained.workdir), task_name="lm")("a [MASK] c", 3)[0]) == 3
    for tool in (Predictor, FillMask):
        with pytest.raises(UserError, match=r"holds the tasks first, lm, tags: choose one by --task_name=NAME"):
            tool(str(trained.workdir))
    with pytest.raises(UserError, match=r"holds the tasks first, lm, tags: choose one by --task_name=NAME"):
        insides(bert_jax.load(trained.workdir)).need_mlm_head()
    insides(bert_jax.load(trained.workdir, task_name="lm")).need_mlm_head()
    other = make_config(data, "first", "pick")
    with pytest.raises(UserError, match=r"has no head for tasks.pick \(its tasks: first, lm, tags\); leave it out"):
        evaluate_checkpoint(with_data(other), other, str(trained.workdir), "best")
    with pytest.raises(UserError, match=r"'mrpc' is not one of the run's tasks \(first, lm, tags\)"):
        open_model(trained.workdir, task_name="mrpc")
    with pytest.raises(UserError, match="was not fine-tuned and predicts nothing"):
        Predictor(str(trained.workdir), task_name="lm")
    with pytest.raises(UserError, match=r"holds the tasks first, lm, tags: choose the one to write by --task=NAME"):
        convert(str(trained.workdir), str(tmp_path / "all"))
    convert(str(trained.workdir), str(tmp_path / "hf"), format="huggingface", task="first")
    theirs = Predictor(str(tmp_path / "hf"))(rows)
    assert [one["label"] for one in theirs] == [one["label"] for one in found]
    assert theirs[0]["probabilities"] == pytest.approx(found[0]["probabilities"], abs=1e-5)


@pytest.mark.parametrize("name", ["", "first"])
def test_a_task_is_trained_further_with_its_head_or_a_new_one(trained, data, tmp_path, name):
    config = of_task(make_config(data, "first", "lm"), "first")
    config.init_from, config.init_task = str(trained.workdir), name
    config.optimizer.learning_rate, config.optimizer.warmup_steps, config.train.steps = 0.0, 0, 1
    config.checkpoint.best_metric = "accuracy"
    result = run(config, tmp_path / "further")
    start = read_checkpoint(trained.checkpoint).parameters
    found = read_checkpoint(result.checkpoint).parameters
    kept = [key for key, x in of_one_task(start, "first").items() if np.array_equal(x, found[key])]
    with pytest.raises(UserError, match="init_task=lm is a task=pretraining, whose head task=classification cannot"):
        config.init_task = "lm"
        inherit(config, tmp_path / "other")
    heads = [key for key in kept if key.startswith("heads/classifier/kernel")]
    assert len(heads) == (1 if name else 0)
    assert {key for key in found if not key.startswith("heads/")} <= set(kept)


def test_a_pretrained_mlm_head_becomes_that_of_a_member(data):
    task = with_data(make_config(data, "first", "lm"))
    assert task.copied_parameters == {"heads/lm/mlm/": "heads/mlm/", "heads/lm/nsp/": "heads/nsp/"}
    source = {"heads/mlm/bias": 1, "heads/nsp/bias": 2, "pooler/bias": 3}
    copied = with_copies(source, task.copied_parameters)[0]
    assert (copied["heads/lm/mlm/bias"], copied["heads/lm/nsp/bias"]) == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "task=multitask needs tasks: list them in the experiment"),
        ({"tasks.a.task": "multitask"}, "tasks.a: task=multitask needs tasks"),
        ({"tasks.a.task": "taging"}, "tasks.a: task is 'taging'; it can be pretraining, classification, tagging"),
        ({"tasks.a.task": "tagging"}, r"tasks.a: data.train is empty: .*\(--config.tasks.a.data.train=…\)"),
        ({"tasks.a.task": "tagging", "tasks.a.data.train": "none.conll"}, "tasks.a: data.train: none.conll"),
        ({"task": "classification", "tasks.a.task": "tagging"}, "tasks.a is for task=multitask, not for task=classif"),
        ({"tasks.first.share": 0.5}, "tasks.first.share is 0.5, but multitask.sampling=temperature follows the sizes"),
        ({"tasks.first.weight": 0.0}, r"tasks.\*.weight is 0 for every task \(first\): set one of them above 0"),
        ({"tasks.first.metric": "f2"}, "tasks.first.metric is 'f2'; of those that are better when higher, it can be"),
        ({"tasks.first.metric": "loss"}, "tasks.first.metric is 'loss'; of those that are better when higher"),
        ({"tasks.first.data.sequence_length": 64}, "tasks.first: data.sequence_length 64 is over model.max_pos"),
        ({"checkpoint.best_metric": "accuracy"}, "checkpoint.best_metric is 'accuracy'; .*first/accuracy"),
        ({"checkpoint.also_best": "f1"}, "checkpoint.also_best is 'f1'; of task=multitask it can be .*first/"),
    ],
)
def test_bad_input_is_one_line_before_the_first_step(data, tmp_path, change, message):
    names = (
        ["first"] if any("first" in key for key in change) or next(iter(change), "").startswith("checkpoint") else []
    )
    config = make_config(data, *names)
    config.data.long_texts = "windows"
    with pytest.raises(UserError, match=message) as error:
        set_options(config, change)
        run(config, tmp_path / "bad")
    assert "\n" not in str(error.value) and not (tmp_path / "bad" / "metrics.jsonl").exists()


@pytest.mark.parametrize("saved", [{}, {"tasks": 3}, {"tasks": {"a": {}}}, {"tasks": {"a": {"description": 3}}}])
def test_a_checkpoint_that_does_not_say_what_a_task_learned_is_one_line(saved):
    with pytest.raises(UserError, match="the checkpoint does not say what its task a learned; train it again"):
        description_of(saved, "a")


def test_a_dry_run_counts_the_batches_of_tasks_with_a_share(data):
    config = make_config(data, "first", "tags")
    check_run(config, TOKENIZER.vocab_size)
    config.train.epochs = 2.0
    assert _steps(config, MultiTask.without_data(config, TOKENIZER, None)) == 2 * (6 + 6)
    config.multitask.sampling, config.tasks.first.share, config.tasks.tags.share = "explicit", 1.0, 0.0
    assert _steps(config, MultiTask.without_data(config, TOKENIZER, None)) == 2 * 6


@pytest.mark.parametrize("sampling", ["annealed", "explicit"])
def test_a_task_of_weight_0_has_no_batches(data, sampling):
    """Their steps would move the trunk by momentum and decay alone."""
    config = make_config(data, "first", "tags", sampling=sampling)
    check_run(config, TOKENIZER.vocab_size)
    config.tasks.tags.weight, config.train.epochs = 0.0, 2.0
    if sampling == "explicit":
        config.tasks.first.share = config.tasks.tags.share = 1.0
    task = MultiTask.without_data(config, TOKENIZER, None)
    assert task.shares == {"first": 1.0, "tags": 0.0} and task.turns(64).counts(64) == [64, 0]
    assert _steps(config, task) == 2 * 6


def test_a_task_without_a_batch_has_no_part_in_a_line_of_training(data):
    """The means of no sums of visual_pretraining are a loss of 0, which would lower that of all."""
    config = make_config(data, "first")
    own = {"image": "picture", "modalities": "text"}
    add_entry(config, "tasks.pictures", task="visual_pretraining", data=data["first"] | own)
    check_run(config, TOKENIZER.vocab_size)
    task = MultiTask.without_data(config, TOKENIZER, None)
    assert task.means({"first/loss": (3.0, 2.0)}) == {"loss": 1.5, "first/loss": 1.5}


def losses(result):
    lines = read_metrics(result.workdir / "metrics.jsonl")
    return [{k: x for k, x in line.items() if k.endswith("loss")} for line in lines if line["split"] == "train"]


@pytest.mark.slow
def test_eight_devices_and_micro_batches_change_only_roundings(data, tmp_path):
    found = {}
    for devices, accumulation, dtype in ((1, 1, "float32"), (8, 2, "float32"), (8, 2, "bfloat16")):
        config = make_config(data, "first", "lm", "tags")
        config.model.update(dtype=dtype, hidden_dropout=0.0, attention_dropout=0.0)
        config.data.packing = False  # rows of their own: the shapes of shared ones depend on the devices
        config.train.update(steps=8, batch_size=16, accumulation=accumulation)
        config.mesh.data = devices
        found[devices, dtype] = losses(run(config, tmp_path / f"{devices}{dtype}"))
    assert found[1, "float32"][-1].keys() == found[8, "float32"][-1].keys()
    for one, other, rough in zip(*found.values(), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
        assert one == pytest.approx(rough, rel=0.05)


@pytest.mark.slow
def test_real_processes_and_a_signal_give_the_same_run(data, tmp_path):
    """One process, two processes, and one that SIGTERM stops in mid-epoch and that is started again."""
    config = make_config(data, "first", "lm", "tags")
    config.mesh.data = 2
    (tmp_path / "config.json").write_text(config.to_json())
    text = "import json\nfrom bert_jax.config import from_json_dict\n\ndef get_config():\n"
    text += f"    return from_json_dict(json.load(open({str(tmp_path / 'config.json')!r}))).lock()\n"
    (tmp_path / "mine.py").write_text(text)
    command = lambda name: processes.module(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / name}")  # noqa: E731
    processes.run(command("once"), tmp_path / "once", 1, devices_each=2)
    processes.run(command("twice"), tmp_path / "twice", 2)
    with processes.Processes(command("again"), tmp_path / "stopped", 1, devices_each=2) as started:
        started.wait_for("step 8/24 train")
        started.signal(0, "SIGTERM")
        assert started.wait() == [143]
    processes.run(command("again"), tmp_path / "again", 1, devices_each=2)
    once, again, twice = (read_checkpoint(find_checkpoint(str(tmp_path / name))) for name in ("once", "again", "twice"))
    assert once.run["data"] == again.run["data"] == twice.run["data"]
    assert once.run["checksums"]["parameters"] == again.run["checksums"]["parameters"]
    for name, x in once.parameters.items():
        np.testing.assert_allclose(x, twice.parameters[name], rtol=1e-4, atol=1e-5, err_msg=name)
