"""Joules of local calls, read from a folder that looks like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm.energy import EnergyMeter


class Processor:
    """The counters of a processor with two packages, as files."""

    def __init__(self, folder: Path, *, wraps_at: int = 1_000_000_000) -> None:
        self.folder = folder
        for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):  # the last is a part of the first
            (folder / name).mkdir(parents=True)
            (folder / name / "max_energy_range_uj").write_text(f"{wraps_at}\n")
        self.uses(0, 0)

    def uses(self, first: int, second: int) -> None:
        """What the counters show, in microjoules."""
        for name, value in (("intel-rapl:0", first), ("intel-rapl:1", second), ("intel-rapl:0:0", 10**8)):
            (self.folder / name / "energy_uj").write_text(f"{value}\n")


def opened(folder: Path) -> EnergyMeter:
    meter = EnergyMeter(folder)
    meter.begin("the first call, with which the counters are looked for")
    assert meter.opened is not None
    meter.opened.join()
    meter.end("the first call, with which the counters are looked for")
    return meter


def test_a_call_has_what_all_packages_used_meanwhile(tmp_path: Path) -> None:
    processor = Processor(tmp_path)
    meter = opened(tmp_path)
    processor.uses(1_000_000, 500_000)
    meter.begin("a")
    processor.uses(3_000_000, 1_500_000)
    assert meter.end("a") == pytest.approx(3.0)
    meter.close()


def test_calls_at_the_same_time_share_it(tmp_path: Path) -> None:
    processor = Processor(tmp_path)
    meter = opened(tmp_path)
    meter.begin("a")
    processor.uses(2_000_000, 0)
    meter.begin("b")
    processor.uses(6_000_000, 0)
    joules_of_a = meter.end("a")
    processor.uses(7_000_000, 0)
    assert (joules_of_a, meter.end("b")) == (pytest.approx(4.0), pytest.approx(3.0))
    meter.close()


def test_a_counter_that_wraps_round_is_counted_on(tmp_path: Path) -> None:
    processor = Processor(tmp_path, wraps_at=10_000_000)
    processor.uses(9_000_000, 0)
    meter = opened(tmp_path)
    meter.begin("a")
    processor.uses(1_000_000, 0)
    assert meter.end("a") == pytest.approx(2.0)
    meter.close()


def test_without_a_counter_joules_are_unknown_and_not_nothing(tmp_path: Path) -> None:
    meter = opened(tmp_path / "powercap")
    meter.begin("a")
    assert meter.end("a") is None


def test_a_counter_that_disappears_makes_them_unknown(tmp_path: Path) -> None:
    processor = Processor(tmp_path)
    meter = opened(tmp_path)
    meter.begin("a")
    (processor.folder / "intel-rapl:0" / "energy_uj").write_text("gone\n")
    assert meter.end("a") is None
