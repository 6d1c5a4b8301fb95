"""The report of a study: the right figures in every form, opened in a real browser; nothing averaged in silence."""

import csv
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bert_jax.config import UserError, read_config
from bert_jax.lab.records import RECORD, STUDY, read_study, write_study
from bert_jax.lab.report import command as report
from bert_jax.lab.report import cost, documents, study_figures, study_report
from bert_jax.lab.report.study_report import describe_study, scale_of
from bert_jax.lab.space import Search, log_uniform
from bert_jax.lab.study import Stage, Study, choice, grid, plan, seeds, values
from bert_jax.models.config import bert_config
from bert_jax.models.cost import training_flops
from bert_jax.tasks.sections import Cell, Table
from tests.lab import study_folders

EVIL = "<script>alert(1)</script> $\\frac{ & % _ # {} ~^ | `x` \x1b[31m 中文 \u202e" + "w" * 300
FAILED, UNFINISHED = 3, 12  # of the runs of mrpc: the baseline's seed 3, and seed 2 of the last level


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of three objectives × 5 seeds, fine-tuned on three tasks; one run failed, one is unfinished."""
    folder = tmp_path_factory.mktemp("studies") / "objectives"
    runs = study_folders.make_folder(folder, study_folders.make_study())
    mrpc = [run for run in runs if run.stage == "mrpc"]
    study_folders.fail(folder, mrpc[FAILED], "failed", "there is not enough memory")
    study_folders.fail(folder, mrpc[UNFINISHED], "unfinished", "")
    return folder


@pytest.fixture(scope="module")
def document(folder):
    return describe_study(read_study(folder))


def write(folder, path):
    assert report.main([str(folder), f"--output={path}"]) == 0
    return path.read_text(encoding="utf-8")


def tables(document):
    """Every table of a document as {title of the part: [rows of texts]}."""

    def found(block):
        match block:
            case Table():
                yield [[c.text if isinstance(c, Cell) else c for c in row] for row in (block.header, *block.rows)]
            case documents.Titled():
                yield from found(block.block)
            case documents.Beside() | documents.Folded():
                for inner in block.blocks:
                    yield from found(inner)

    return {part.title: [table for block in part.blocks for table in found(block)] for part in document.parts}


def verdicts(document):
    return [line for block in document.parts[0].blocks if isinstance(block, documents.Verdicts) for line in block.lines]


def mean_and_half(values):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return f"{100 * np.mean(values):.1f} ± {50 * (high - low):.1f}".replace("-", "−")


def accuracies(folder, stage, objective):
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{stage}/*/{RECORD}"))]
    chosen = [one for one in found if one["levels"]["objective"] == objective and one["status"] == "complete"]
    return [one["result"]["test"]["accuracy"] for one in chosen]


def test_a_page_in_a_browser_without_a_network(document, tmp_path, look):
    page = tmp_path / "report.html"
    page.write_text(documents.to_html(document), encoding="utf-8")
    script = """() => ({
        text: document.body.innerText, pictures: document.querySelectorAll('figure svg').length,
        labels: [...document.querySelectorAll('svg text')].map(text => text.textContent),
        ink: getComputedStyle(document.querySelector('svg text')).fill,
        paper: getComputedStyle(document.body).backgroundColor,
        width: document.documentElement.scrollWidth, ids: [...document.querySelectorAll('[id]')].map(one => one.id),
    })"""
    for width, scheme in ((1100, "light"), (390, "dark")):
        result, requests, messages = look(page, script, width, scheme)
        assert requests == [page.resolve().as_uri()] and messages == []
        assert result["width"] <= width  # wide tables scroll by themselves
        inks = {name: sum(map(int, re.findall(r"\d+", result[name])[:3])) for name in ("ink", "paper")}
        assert (inks["ink"] < inks["paper"]) == (scheme == "light")
    assert "left-to-right is worse than MLM + NSP on sst2" in result["text"]
    assert "2 of 60 runs are in no figure below: 1 failed, 1 unfinished" in result["text"]
    assert result["pictures"] == 3 and "MLM + NSP" in result["labels"] and "mrpc" in result["labels"]
    assert len(result["ids"]) == len(set(result["ids"]))


def test_means_are_those_of_complete_runs_and_the_others_are_counted(folder, document):
    ours, published = tables(document)["Results"]
    assert ours[0] == ["", "sst2", "mrpc", "trec"]
    for row, level in zip(ours[1:], study_folders.OBJECTIVES, strict=True):
        assert row == [level, *(mean_and_half(accuracies(folder, stage, level)) for stage in study_folders.MEANS)]
    assert published[-1] == ["LTR & No NSP", "92.1", "–"]
    cells = next(b for b in document.parts[1].blocks if isinstance(b, documents.Beside)).blocks[0].block.rows
    assert [cells[0][2].note, cells[2][2].note] == ["4 of 5 runs, 1 failed", "4 of 5 runs, 1 unfinished"]
    best = max(study_folders.OBJECTIVES, key=lambda level: np.mean(accuracies(folder, "mrpc", level)))
    assert [row[0].text for row in cells if row[2].kind == "best"] == [best]
    [missing] = tables(document)["Runs that do not count"]
    assert [row[1:3] for row in missing[1:]] == [
        ["failed", "there is not enough memory"],
        ["unfinished", "was interrupted; the next start of the sweep continues it"],
    ]


def test_every_form_carries_the_same_figures(folder, document, tmp_path, monkeypatch):
    monkeypatch.setattr(study_report, "describe_study", lambda record: document)  # its pictures are drawn once
    figure = mean_and_half(accuracies(folder, "sst2", "left-to-right"))
    assert f'<td class="number">{figure}' in write(folder, tmp_path / "a.html")
    markdown = write(folder, tmp_path / "a.md")
    assert f"| {figure} (5 runs) |" in markdown
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert len(pictures) == 3
    assert all((tmp_path / name).read_bytes().startswith(b"<?xml") for name in pictures)
    assert figure.replace("±", "$\\pm$").replace(" ", "~") in write(folder, tmp_path / "a.tex").replace(" ", "~")
    write(folder, tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 60 and sum(row["status"] == "complete" for row in rows) == 58
    chosen = [row for row in rows if (row["stage"], row["level.objective"]) == ("sst2", "left-to-right")]
    assert [float(row["test.accuracy"]) for row in chosen] == accuracies(folder, "sst2", "left-to-right")
    assert {row["test.accuracy"] for row in rows if row["status"] != "complete"} == {""}


def test_orderings_of_the_source_are_found_opposite_or_open(tmp_path):
    means = {"sst2": ({"MLM + NSP": 0.80, "MLM": 0.85, "left-to-right": 0.70}, 0.005)}
    means["sst2"][0].update({"left-to-right": 0.70})
    expected = [("MLM + NSP", "MLM", "sst2"), ("MLM", "left-to-right", "sst2"), ("MLM + NSP", "MLM", "mrpc")]
    study = study_folders.make_study(expected=expected)
    study_folders.make_folder(tmp_path, study, means | {"mrpc": ({}, 0.02)}, with_curves=False)
    [table] = tables(describe_study(read_study(tmp_path)))["Orderings that the source reports"]
    assert [row[3] for row in table[1:]] == ["the opposite was found", "found", "can't tell"]
    gained = 100 * (np.mean(accuracies(tmp_path, "sst2", "MLM + NSP")) - np.mean(accuracies(tmp_path, "sst2", "MLM")))
    assert table[1][2].startswith(f"{gained:+.1f} ± ".replace("-", "−"))


def test_cost_is_that_of_all_runs(folder, document):
    """By hand: 15 runs of 412 s on one machine of 2 cores at 10 W; 2,000 steps of 2,000 tokens in each."""
    [table] = tables(document)["Cost"]
    assert table[1][:4] == ["pretrain", "15", "1.72", "60 M"] and table[1][5] == "34.3 Wh"
    record = read_study(folder)
    spent = cost.cost_of(record.runs[0], [{"machine": {"cores": 2}, "devices": {"kind": "NVIDIA H100", "count": 4}}])
    assert spent.device_hours == pytest.approx(4 * 412 / 3600)
    assert spent.watt_hours == pytest.approx(4 * 700 * 412 / 3600)
    config = read_config(record.runs[0].folder / "config.json")
    model = bert_config(config.model, config.data.vocab_size)
    by_hand = 2000 * training_flops(model, 256, 2000 / 256, 20)
    assert spent.flops == pytest.approx(by_hand)


def test_what_differs_and_where_runs_were_made(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    path = next((tmp_path / "copy").glob("trec/*/environment.json"))
    path.write_text(path.read_text().replace('"changes": ""', '"changes": "0123456789abcdef"'))
    document = describe_study(read_study(tmp_path / "copy"))
    keys, environment = (tables(document)[title] for title in ("What differs between the levels", "Environment"))
    assert keys == [
        [
            ["option", *study_folders.OBJECTIVES],
            ["data.pairing", "nsp", "none", "none"],
            ["model.causal", "None", "None", "True"],
        ]
    ]
    assert environment[0][:2] == [
        ["", "59 runs", "1 runs"],
        ["code changes", "none", "not committed: 0123456789ab"],
    ]
    said = [block.text for part in document.parts if part.title == "Environment" for block in part.blocks[:1]]
    assert said == ["The runs were made in 2 environments, which differ in code changes."]


def test_bands_are_t_intervals_over_the_steps_that_all_runs_have():
    runs = [([0, 10, 20], [1.0, 2.0, 3.0]), ([0, 10], [2.0, 2.0]), ([0, 10, 20], [4.0, 3.0, 1.0])]
    steps, mean, half = study_figures.mean_and_band(runs)
    low, high = stats.t.interval(0.95, 2, np.mean([1, 2, 4]), stats.sem([1, 2, 4]))
    assert steps.tolist() == [0, 10]
    assert [mean[0], half[0]] == pytest.approx([7 / 3, (high - low) / 2])
    assert study_figures.mean_and_band([([5], [2.0])])[2].tolist() == [0.0]
    assert len(study_figures.mean_and_band([])[0]) == 0


def test_labels_from_anywhere_are_text_everywhere(tmp_path, look):
    objectives = {EVIL: {}, "=2+2": {"data.pairing": "none"}}
    study = study_folders.make_study(objectives, count=2, question=EVIL, published=None)
    runs = study_folders.make_folder(tmp_path / "evil", study, with_curves=False)
    study_folders.write_curves(tmp_path / "evil" / runs[0].stage / runs[0].name, runs[0], 0.8, np.random.default_rng(0))
    study_folders.fail(tmp_path / "evil", runs[-1], "failed", EVIL)
    text = write(tmp_path / "evil", tmp_path / "evil.html")
    assert "<script" not in text and "\x1b" not in text
    script = "() => [document.querySelectorAll('script').length, document.documentElement.scrollWidth]"
    result, requests, messages = look(tmp_path / "evil.html", script)
    assert result[0] == 0 and result[1] <= 1100 and len(requests) == 1 and messages == []
    markdown = write(tmp_path / "evil", tmp_path / "evil.md")
    assert "<script" not in markdown.replace("\\<", "") and "\x1b" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows if "script" in row} <= {3, 4, 5, 10}
    write(tmp_path / "evil", tmp_path / "evil.csv")
    with (tmp_path / "evil.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["level.objective"] for row in rows} == {EVIL, "'=2+2"}  # no formula


def test_no_label_is_an_option_of_the_line_before():
    table = Table(["", "x"], [["[MASK]", "1"], ["*", "2"]])  # after \\\\, LaTeX takes both for itself
    lines = documents.to_latex(documents.Document("a", [documents.Part("b", [table])])).splitlines()
    assert [line for line in lines if line.startswith(("[", "*"))] == [] and r"{[}MASK] & 1 \\" in lines


def test_a_carriage_return_does_not_end_a_row(tmp_path):
    study = study_folders.make_study({"a": {}, "b\rc": {"data.pairing": "none"}}, count=1, published=None)
    study_folders.make_folder(tmp_path / "study", study, with_curves=False)
    write(tmp_path / "study", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert {row["level.objective"] for row in csv.DictReader(file)} == {"a", "b\nc"}


def test_a_difference_of_fewer_pairs_than_there_are_values_says_so(tmp_path):
    levels = choice("objective", {"A": {}, "B": {"data.pairing": "none"}})
    stages = Stage("first", "x.py", grid(seeds(4))), Stage("tune", "y.py", grid(levels), after="first")
    study = Study("?", stages, "objective", "A", {"tune": "test.accuracy"})
    *_, last = study_folders.make_folder(tmp_path / "study", study, with_curves=False)
    assert "pairs)" not in write(tmp_path / "study", tmp_path / "a.md")
    study_folders.fail(tmp_path / "study", last, "failed", "boom")
    assert "(3 pairs)" in write(tmp_path / "study", tmp_path / "b.md")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, such as Debian's texlive-latex-base")
def test_latex_compiles_whatever_the_labels(tmp_path):
    objectives = {EVIL[:80]: {}, "\\input{/etc/passwd}": {"data.pairing": "none"}}
    study = study_folders.make_study(objectives, count=2, question="50 % & more_of #1 \\ {x} ^~ “naïve”")
    study_folders.make_folder(tmp_path / "study", study, with_curves=False)
    write(tmp_path / "study", tmp_path / "a.tex")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "/etc/passwd" not in done.stdout  # no file is read


def test_one_seed_and_no_complete_run_are_said(tmp_path):
    study = study_folders.make_study(count=1)
    runs = study_folders.make_folder(tmp_path / "one", study, with_curves=False)
    document = describe_study(read_study(tmp_path / "one"))
    lines = verdicts(document)
    assert len(lines) == 2 and all(line.kind == "unclear" for line in lines)
    assert lines[0].text == "MLM can’t be told from MLM + NSP on sst2, mrpc and trec"
    assert "one run has no spread between seeds" in lines[0].note
    assert "±" not in tables(document)["Results"][0][1][1]
    for run in runs:
        study_folders.fail(tmp_path / "one", run, "failed", "boom")
    document = describe_study(read_study(tmp_path / "one"))
    assert verdicts(document)[0].text == "12 of 12 runs are in no figure below: 12 failed."
    assert tables(document)["Results"][0][1] == ["MLM + NSP", "–", "–", "–"]
    for suffix in ("html", "md", "tex", "csv"):
        write(tmp_path / "one", tmp_path / f"a.{suffix}")


def test_a_complete_run_without_the_metric_has_failed_and_is_listed(tmp_path):
    study = study_folders.make_study(count=2, published=None)
    *others, last = study_folders.make_folder(tmp_path, study, with_curves=False)
    study_folders.complete(tmp_path, last, {"test": {"loss": 0.5}})
    study_folders.complete(tmp_path, others[-1], {"test": {"accuracy": 0.0}})  # which is a value
    document = describe_study(read_study(tmp_path))
    assert verdicts(document)[0].text == f"1 of {len(others) + 1} runs are in no figure below: 1 failed."
    [_, row] = tables(document)["Runs that do not count"][0]
    assert row[:3] == [last.key, "failed", "test.accuracy is missing or not finite"]


def test_two_metrics_of_a_stage_are_two_columns(tmp_path):
    study = study_folders.make_study(count=3, published=None, expected=[("MLM", "MLM + NSP", "sst2 loss")])
    study = replace(study, metrics={"sst2": "test.accuracy, eval.loss"})
    runs = study_folders.make_folder(tmp_path, study, with_curves=False)
    document = describe_study(read_study(tmp_path))
    [header, *rows] = tables(document)["Results"][0]
    assert header[1:] == ["sst2 accuracy", "sst2 loss"]
    assert all(len(row) == 3 for row in rows)
    [[_, ordering]] = tables(document)["Orderings that the source reports"]
    assert ordering[:2] == ["MLM better than MLM + NSP", "sst2 loss"]
    study_folders.complete(tmp_path, [run for run in runs if run.stage == "sst2"][-1], {"test": {"accuracy": 0.5}})
    [_, row] = tables(describe_study(read_study(tmp_path)))["Runs that do not count"][0]
    assert row[2] == "eval.loss is missing or not finite"


def test_runs_that_wait_share_a_line_unless_what_they_wait_for_has_failed(tmp_path):
    first = Stage("a", "experiments/tiny.py", grid(seeds(3)))
    then = Stage("b", "experiments/tiny.py", after="a")
    study = study_folders.make_study(stages=(first, then), factor="", baseline="", expected=(), published=None)
    study = replace(study, metrics={"b": "test.accuracy"})
    runs = study_folders.make_folder(tmp_path, study, with_curves=False)
    study_folders.fail(tmp_path, runs[0], "failed", "there is not enough memory")
    for run in runs[1:]:
        shutil.rmtree(tmp_path / run.stage / run.name)
    [missing] = tables(describe_study(read_study(tmp_path)))["Runs that do not count"]
    assert [row[:3] for row in missing[1:]] == [
        ["a/seed=0", "failed", "there is not enough memory"],
        ["b/seed=0", "waiting", "waits for a/seed=0, which failed"],
        ["a", "waiting", "2 runs have not started"],
        ["b", "waiting", "2 runs have not started"],
    ]


def test_runs_that_the_study_no_longer_names_are_listed_only(tmp_path):
    study = study_folders.make_study(count=2)
    study_folders.make_folder(tmp_path, study, with_curves=False)
    before = tables(describe_study(read_study(tmp_path)))["Results"]
    stale = tmp_path / "sst2" / "objective=MLM,seed=9"
    shutil.copytree(tmp_path / "sst2" / "objective=MLM,seed=1", stale)
    document = describe_study(read_study(tmp_path))
    assert tables(document)["Results"] == before
    [missing] = tables(document)["Runs that do not count"]
    assert missing[1][:2] == ["sst2/objective=MLM,seed=9", "stale"]


def test_a_study_without_a_factor_and_a_search(tmp_path):
    stage = Stage("train", "experiments/tiny.py", grid(values("optimizer.learning_rate", [0.1, 0.2, 0.3])))
    study = study_folders.make_study(stages=(stage,), factor="", baseline="", expected=(), published=None)
    study = replace(study, metrics={"train": "eval.loss"})
    runs = study_folders.make_folder(tmp_path / "plain", study, with_curves=False)
    [table] = tables(describe_study(read_study(tmp_path / "plain")))["Results"]
    assert [row[1] for row in table[1:]] == [f"optimizer.learning_rate = 0.{i}" for i in (1, 2, 3)]
    search = Search({"optimizer.learning_rate": log_uniform(1e-5, 1e-3)}, 3, metric="eval.accuracy", direction="max")
    study = replace(study, stages=(Stage("train", "experiments/tiny.py"),), search=search)
    write_study(tmp_path / "plain", "search", "search.py", study, runs)
    [table] = tables(describe_study(read_study(tmp_path / "plain")))["Results"]
    found = [float(row[3]) for row in table[1:]]
    assert found == sorted(found, reverse=True)
    write_study(
        tmp_path / "plain", "search", "search.py", replace(study, search=replace(search, sampler="random")), runs
    )
    _, best = tables(describe_study(read_study(tmp_path / "plain")))["Results"]
    high, middle, low = (100 * run["result"]["eval"]["accuracy"] for run in sorted(
        (json.loads(path.read_text()) for path in (tmp_path / "plain").glob(f"train/*/{RECORD}")),
        key=lambda run: -run["result"]["eval"]["accuracy"],
    ))  # fmt: skip
    pairs = [(high + middle + low) / 3, (2 * high + middle) / 3, high]  # the best of 1, of 2 and of all
    drawn_twice = [pairs[0], (5 * high + 3 * middle + low) / 9, (19 * high + 7 * middle + low) / 27]
    assert best[1:] == [[str(n + 1), f"{pairs[n]:.1f}", f"{drawn_twice[n]:.1f}"] for n in range(3)]
    study_folders.fail(tmp_path / "plain", runs[0], "failed", "no memory")
    text = documents.to_text(describe_study(read_study(tmp_path / "plain")))
    assert "1 failed or pruned trials count as the worst complete one" in text


def test_with_ten_seeds_and_kept_predictions_the_examples_are_resampled_too(tmp_path):
    objectives = {name: study_folders.OBJECTIVES[name] for name in ("MLM + NSP", "MLM")}
    study = study_folders.make_study(objectives, 10, published=None, expected=(), metrics={"mrpc": "eval.accuracy"})
    runs = study_folders.make_folder(tmp_path / "s", study, with_curves=False)
    assert "seeds × examples" not in documents.to_text(describe_study(read_study(tmp_path / "s")))
    right = np.random.default_rng(0).random((len(runs), 200)) < 0.75
    for run, row in zip(runs, right, strict=True):
        if run.stage == "mrpc":
            folder = tmp_path / "s" / run.key / "predictions"
            folder.mkdir(parents=True)
            lines = [json.dumps({"label": "1", "prediction": {"label": str(int(is_right))}}) for is_right in row]
            (folder / "validation.jsonl").write_text("\n".join(lines) + "\n")
            study_folders.complete(tmp_path / "s", run, {"eval": {"accuracy": float(row.mean())}})
    document = describe_study(read_study(tmp_path / "s"))
    [[header, row]] = tables(document)["Differences from the baseline"]
    of_seeds, of_both = (row[header.index(name)].split(" ± ") for name in ("difference", "seeds × examples"))
    assert of_both[0] == of_seeds[0] and float(of_both[1]) > float(of_seeds[1])  # examples add noise of their own
    assert "the multibootstrap" in documents.to_text(document)


def test_losses_keep_their_unit_and_scores_are_times_100():
    assert scale_of("eval.loss", [0.5])[:2] == (1.0, 3)
    assert scale_of("test.mcc", [-0.2, 0.6])[:2] == (100.0, 1)
    assert scale_of("test.f1", [88.0])[:2] == (1.0, 2)


@pytest.mark.parametrize(
    "words, problem",
    [
        ([], "the folder is missing; give one"),
        (["a", "b"], "2 folders are given; give one"),
        (["no_such_folder"], "no_such_folder is not a folder"),
        (["{empty}"], "holds neither a study (study.json) nor a run (config.json)"),
        (["{study}", "--output=report.docx"], "is no file that can be written; give one of .html, .md, .csv, .tex"),
        (["{study}", "--output=/dev/null"], "/dev/null is no file that can be written"),
        (["{study}", "--output=-"], "- is no file that can be written"),
        (["{study}", "--output={fifo}"], "fifo.html is no file that can be written"),
        (["{study}", "--output={study}/sst2/objective=MLM,seed=0/report.html"], "is inside of a run of the study"),
        (["{study}", "--output={link}"], "study.json, which it would destroy"),
        (["{study}", "--ouput=a.html"], "did you mean --output?"),
        (["{damaged}"], "study.json is damaged"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, words, problem):
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder, tmp_path / "study", ignore=lambda at, names: [n for n in names if n == "pretrain"])
    (tmp_path / "link.html").symlink_to(tmp_path / "study" / STUDY)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / STUDY).write_text('{"name": "x"}')
    os.mkfifo(tmp_path / "fifo.html")
    places = {name: tmp_path / name for name in ("empty", "study", "damaged")}
    places |= {name: tmp_path / f"{name}.html" for name in ("link", "fifo")}
    before = (tmp_path / "study" / STUDY).read_bytes()
    with pytest.raises(UserError) as raised:
        report.main([word.format(**places) for word in words])
    assert problem in str(raised.value) and "\n" not in str(raised.value)
    assert (tmp_path / "study" / STUDY).read_bytes() == before


def test_plan_of_the_folder_is_that_of_the_study(folder):
    """The made-up folder has the runs that a sweep of this study would make."""
    assert [run.key for run in read_study(folder).runs] == [run.key for run in plan(study_folders.make_study())]
