"""What the benchmarks compute from times, and the texts that they run on."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

from bert_jax.config import UserError

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def module(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # inference.py and startup.py import timing.py by this name
    spec.loader.exec_module(found)
    return found


timing = module("timing")


def test_variants_take_turns():
    seen = []
    times = timing.in_turns({"a": lambda: seen.append("a"), "b": lambda: (seen.append("b"), time.sleep(0.01))}, 3)
    assert seen == ["a", "b"] * 3
    assert len(times["a"].wall) == len(times["b"].cpu) == 3
    assert min(times["b"].wall) >= 0.01 > max(times["b"].cpu)  # sleeping takes no processor time


def test_ratio_is_of_medians_and_its_range_of_rounds():
    peers = {"slow": [9.0, 9.0, 9.0], "fast": [2.0, 3.0, 8.0]}
    ratio = timing.ratio_to_best([1.0, 2.0, 2.0], peers)
    assert ratio == (1.5, 1.5, 4.0, "fast")  # 3 / 2; 2 / 1, 3 / 2, 8 / 2
    assert str(ratio) == "ratio 1.50 (1.50–4.00)"
    assert timing.spread([1.0, 3.0, 2.0], 1) == "2.0 (1.0–3.0)"


def test_the_machine_is_named():
    described = timing.machine(("jax", "numpy"))
    assert described.keys() == {"machine", "versions", "heap"}
    assert "cores, load" in described["machine"] and ", numpy 2" in described["versions"]


def test_texts_are_half_sentences_and_the_same_each_time(tmp_path):
    inference = module("inference")
    with pytest.raises(UserError, match=r"no .*SST-2/dev.tsv: unpack the archive of sst2 there"):
        inference.mixed_texts(tmp_path, 8)
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    (tmp_path / "glue" / "SST-2" / "dev.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"sentence {i} \t1\n" for i in range(9))
    )
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb" / "test.jsonl").write_text("".join(json.dumps({"text": f"review {i}"}) + "\n" for i in range(9)))
    for i in range(9):
        folder = tmp_path / "bbc_news" / "articles" / ("tech", "sport")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_bytes(f"article {i} £\n".encode("latin-1"))
    texts = inference.mixed_texts(tmp_path, 8)
    assert sorted(text.split()[0] for text in texts) == ["article"] * 2 + ["review"] * 2 + ["sentence"] * 4
    assert len(set(texts)) == 8 and texts == inference.mixed_texts(tmp_path, 8)
    with pytest.raises(UserError, match="--texts=40: there are 9 of sst2, and 20 are needed"):
        inference.mixed_texts(tmp_path, 40)
    assert all(text.endswith("£\n") for text in texts if text.startswith("article"))


def test_the_end_of_a_first_step_is_found_or_its_lack_explained():
    startup = module("startup")
    lines = "import sys, time; print('10:00:00 step 1/10 train: loss 1', file=sys.stderr, flush=True); time.sleep(60)"
    assert 0 < startup.first_step(["-c", lines])[0] < 30
    with pytest.raises(UserError, match=r"(?s)ended without a first step:.*no such thing"):
        startup.first_step(["-c", "raise SystemExit('no such thing')"])


@pytest.mark.parametrize("name", ["train_step", "scaling"])
def test_help_exits_with_status_0(name, monkeypatch, capsys):
    module("train_step")  # scaling.py imports it by this name
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module(name).main()
    assert ended.value.code == 0
    assert "--warm_up" in capsys.readouterr().out


def test_articles_with_summaries_lose_their_headline(tmp_path):
    module("archives")  # which summaries_data.py imports by this name
    finetune_data = module("finetune_data")
    summaries_data = module("summaries_data")
    for kind, text in (("articles", "Head\n\nOne \xa3. Two.\n"), ("summaries", "Two.One \xa3.")):
        (tmp_path / kind / "tech").mkdir(parents=True)
        (tmp_path / kind / "tech" / "001.txt").write_text(text, "latin-1")
    (tmp_path / "articles" / "tech" / "002.txt").write_text("No summary")
    expected = {"id": "tech/001", "document": "One £. Two.", "summary": "Two.One £."}
    assert summaries_data.articles(tmp_path) == [expected] and summaries_data.SEED == finetune_data.SEED
    with pytest.raises(UserError, match=r"bbc_news.tar.xz does not exist; --archives is the folder"):
        summaries_data.make(tmp_path, tmp_path / "to")


def test_an_answer_that_is_anothers_ends_the_load():
    serving = module("serving_load")
    first, second = {"x": 0.9, "y": 0.1}, {"x": 0.2, "y": 0.8}
    load = serving.Load(["a", "b"], [{"probabilities": first}, {"probabilities": second}])
    right = {"id": "text 1", "probabilities": {"x": 0.2001, "y": 0.7999}}
    load.check([1], [right])
    load.check([1, 0], [right, {"id": "text 0", "probabilities": first}])
    for answer in ([{"id": "text 1", "probabilities": first}], [right | {"id": "text 0"}], [], [right] * 2):
        with pytest.raises(UserError, match="another's answer for"):
            load.check([1], answer)
    vectors = serving.Load(["a", "b"], [[1.0, 0.0], [0.0, 1.0]], path="/embed")
    vectors.check([0], [[0.9999, 0.01]])
    with pytest.raises(UserError, match="another's answer for"):
        vectors.check([0], [[0.0, 1.0]])


def test_a_request_has_texts_with_their_ids():
    load = module("serving_load").Load(["a", "b"], [], most=3)
    sizes = set()
    for _ in range(20):
        numbers, body = load.body()
        inputs = json.loads(body)["inputs"]
        assert inputs == [{"text": "ab"[i], "id": f"text {i}"} for i in numbers]
        sizes.add(len(numbers))
    assert sizes == {1, 2, 3}


def test_formats_are_compared_with_the_first_one(tmp_path, monkeypatch, capsys):
    module("inference")
    formats = module("export_formats")
    answers = [{"label": "a", "probabilities": {"a": 0.75, "b": 0.25}}]
    others = [{"label": "b", "probabilities": {"a": 0.25, "b": 0.75}}]
    assert formats.beside(answers, others) == {"difference": "5.0e-01", "equal": 0.0}
    row = dict.fromkeys(formats.COLUMNS, 1)
    assert formats.table({"onnx:int8": row})[-1] == "| onnx:int8 | " + " | ".join("1" * len(row)) + " |"
    monkeypatch.setattr(sys, "argv", ["export_formats", "--texts=a.txt", "--variants=onnx:int8"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        formats.main()
    assert "onnx is not installed: pip install -e '.[onnx]'" in capsys.readouterr().err
