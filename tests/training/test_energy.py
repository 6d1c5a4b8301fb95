"""What a run costs: declared watts by hand, codecarbon without a network, sums over starts, and one line if missing."""

import importlib.util
import json
import socket
import time

import pytest

from bert_jax.config import UserError
from bert_jax.convert.model_card import model_card
from bert_jax.lab.records import RunRecord
from bert_jax.lab.report.cost import cost_of
from bert_jax.lab.report.documents import to_html
from bert_jax.lab.report.run_page import describe_run
from bert_jax.options import default_config
from bert_jax.training import energy
from bert_jax.training.energy import Energy, check_energy, described, energy_of, grams_per_kwh

needs_codecarbon = pytest.mark.skipif(
    importlib.util.find_spec("codecarbon") is None, reason="needs codecarbon: pip install -e '.[energy]'"
)


class Mesh:
    size = 4


def options(**values):
    config = default_config().energy
    config.update(values)
    return config


def test_declared_watts_are_power_times_time_and_a_resumed_run_adds_up(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    line = {"kwh": 2.0, "measured_kwh": 0.5, "co2e_grams": 1000.0, "device_hours": 8.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 4, "split": "ledger", "useful": 1.0} | line) + "\n")
    meter = Energy(tmp_path, options(meter="watts", watts=500.0, grams_per_kwh=100.0))
    assert meter.account() == {}  # before the first state nothing is known
    meter.begin(None, None, Mesh())
    now[0] += 7200
    expected = {"kwh": 3.0, "measured_kwh": 0.5, "co2e_grams": 1100.0, "device_hours": 16.0}
    assert meter.account() == pytest.approx(expected)
    meter.begin(None, None, Mesh())  # the run goes back to a checkpoint: what was spent is spent
    assert meter.account() == pytest.approx(expected)


def test_what_no_counter_measured_is_called_an_estimate():
    assert described({}) == {} and energy_of([{"step": 1, "split": "train", "kwh": 3.0}]) == {}
    whole = {"kwh": 2.0, "co2e_grams": 1500.0, "device_hours": 0.25}
    texts = {share: described(whole | {"measured_kwh": 2.0 * share})["energy"] for share in (0.0, 0.5, 1.0)}
    assert texts == {
        0.0: "2 kWh (estimate)",
        0.5: "2 kWh (50% measured, the rest estimated)",
        1.0: "2 kWh (measured)",
    }
    assert described(whole)["CO2 equivalents"] == "1.5 kg (estimate)"


def test_a_model_card_has_the_energy_up_to_its_checkpoint(tmp_path):
    lines = [{"step": step, "split": "ledger", "kwh": kwh, "device_hours": 1.0} for step, kwh in ((2, 0.5), (4, 0.75))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = {"step": 2, "config": default_config().to_dict(), "task": {}}
    card = model_card(run, tmp_path / "metrics.jsonl", "BertModel", 1)
    assert "| energy | 0.5 kWh (estimate) |" in card and "0.75" not in card


def test_the_page_of_a_run_and_the_cost_of_a_study_have_it(tmp_path):
    lines = [{"step": 2, "split": "ledger", "kwh": 0.5, "measured_kwh": 0.5, "device_hours": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = to_html(describe_run(None, {}, default_config(), tmp_path))
    assert "0.5 kWh (measured)" in page and "device hours" in page
    record = RunRecord("pretrain", "a", {}, {}, tmp_path, seconds=3600.0)
    assert cost_of(record, []).watt_hours == 500.0
    (tmp_path / "metrics.jsonl").write_text("")
    assert "kWh" not in to_html(describe_run(None, {}, default_config(), tmp_path))
    assert cost_of(record, []).watt_hours == 10.0  # of one core, since nothing else is known


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"meter": "watts"}, "set energy.watts"),
        ({"watts": 20.0}, "energy.meter is none"),
        ({"meter": "joules"}, "energy.meter"),
        ({"meter": "watts", "watts": -1.0}, "energy.watts is -1"),
    ],
)
def test_what_is_wrong_with_the_options_is_said_in_a_line(values, says):
    with pytest.raises(UserError, match=says) as caught:
        check_energy(options(**values))
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_said_in_a_line(monkeypatch):
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs the extra energy: pip install -e '\.\[energy\]'"):
        check_energy(options(meter="codecarbon"))
    check_energy(options(meter="watts", watts=10.0))  # needs no package


@needs_codecarbon
def test_codecarbon_works_without_a_network_and_knows_countries(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.chdir(tmp_path)
    clean, coal = (grams_per_kwh(options(meter="codecarbon", country=code)) for code in ("NOR", "POL"))
    assert 0 < clean < 100 < coal < 1200
    with pytest.raises(UserError, match=r"energy\.country is 'POLAND'"):
        check_energy(options(meter="codecarbon", country="POLAND"))
    meter = Energy(tmp_path, options(meter="codecarbon", grams_per_kwh=200.0))
    meter.begin(None, None, Mesh())
    first = meter.account()
    sum(i for i in range(2_000_000))
    second = meter.account()
    assert 0 < first["kwh"] < second["kwh"] < 0.01 and 0 <= second["measured_kwh"] <= second["kwh"]
    assert second["co2e_grams"] == pytest.approx(200 * second["kwh"]) and list(tmp_path.iterdir()) == []
