"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import qdiff_fx
from qdiff_fx import load_qdiff
from qdiff_fx.cli import app
from qdiff_fx.cli.rules import parse_rule
from qdiff_fx.config import Rule
from qdiff_fx.errors import ConfigError
from qdiff_fx.kernels import Status
from qdiff_fx.reconstruction import ReconstructionConfig
from qdiff_fx.storage import sealed
from qdiff_fx.workflow.amounts import parse_rows
from qdiff_fx.workflow.job import ALL_ROWS

cli_doctor = importlib.import_module("qdiff_fx.cli.doctor")  # the name is that of its function too
pytestmark = pytest.mark.usefixtures("quickly")
CUSTOM = Path(__file__).parents[1] / "examples" / "custom_unet.py"
QUICK = ("--steps", "3", "--samples", "4", "--batch-size", "2")
REFERENCE = ("--backend", "reference")
TRUSTED = ("--source", CUSTOM)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A saved network, and what the command that saved it said."""
    folder = tmp_path_factory.mktemp("cli") / "w4a8"
    rules = ("--rule", "first=float", "--rule", "last=w8")
    return folder, succeed("quantize", CUSTOM, "--weight-bits", "4", *QUICK, *rules, "--out", folder, "--json", "-")


@pytest.fixture(scope="module")
def folder(quantized: tuple[Path, Result]) -> Path:
    return quantized[0]


class TestQuantize:
    def test_stdout_is_json_alone(self, quantized: tuple[Path, Result]) -> None:
        folder, result = quantized
        figures = json.loads(result.stdout)
        assert set(figures) == {"folder", "bytes", "source", "config", "layers", "estimate", "rounding"}
        assert figures["folder"] == str(folder)
        assert figures["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
        assert figures["source"] == str(CUSTOM)

    def test_options_reach_the_configuration(self, quantized: tuple[Path, Result]) -> None:
        figures = json.loads(quantized[1].stdout)
        assert figures["config"]["weight_bits"] == 4
        assert figures["config"]["num_train_timesteps"] == 1000
        assert [rule["pattern"] for rule in figures["config"]["rules"]] == ["first", "last"]
        assert figures["layers"]["in_float"] == [
            {"path": "first", "reason": "a rule of the configuration keeps it in float"}
        ]

    def test_tables_and_progress_go_to_stderr(self, quantized: tuple[Path, Result]) -> None:
        assert "sampling" in quantized[1].stderr
        assert "1 in float" in quantized[1].stderr

    def test_layers_with_too_little_data_are_named(self, quantized: tuple[Path, Result]) -> None:
        short = json.loads(quantized[1].stdout)["rounding"]["short"]
        assert short["merge.time"] == 12  # one position of each row
        assert f"{len(short)} of " in quantized[1].stderr
        assert "fewer positions than they have columns" in " ".join(quantized[1].stderr.split())

    def test_calibration_data_are_kept_and_used_again(self, tmp_path: Path) -> None:
        kept = ("--calibration", tmp_path / "data")
        nearest = ("--rounding", "nearest")
        for name in ("first", "second"):
            succeed("quantize", CUSTOM, *QUICK, *nearest, *kept, "--out", tmp_path / name)
        assert any((tmp_path / "data").rglob("*.safetensors"))
        hashes = [json.loads((tmp_path / name / "qdiff.json").read_text())["sha256"] for name in ("first", "second")]
        assert hashes[0] == hashes[1]
        other = run("quantize", CUSTOM, *QUICK, *kept, "--seed", "5", "--out", tmp_path / "third")
        assert other.exit_code == 1
        assert "recorded with other settings (seed)" in other.stderr

    @pytest.mark.slow
    def test_per_tensor_and_every(self, tmp_path: Path) -> None:
        options = ("--per-tensor", "--every", "2", "--split", "off", "--act-range", "minmax")
        succeed("quantize", CUSTOM, *QUICK, *options, "--out", tmp_path / "net", "--json", tmp_path / "figures.json")
        config = json.loads((tmp_path / "figures.json").read_text())["config"]
        assert (config["act_granularity"], config["split"], config["act_range"]) == ("tensor", "off", "minmax")

    @pytest.mark.slow
    def test_reconstructed_blocks_are_kept_and_read_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        schedule = ReconstructionConfig(weight_steps=2, act_steps=2, batch_size=4)
        monkeypatch.setattr(ReconstructionConfig, "fast", staticmethod(lambda: schedule))
        kept = ("--reconstruct", "fast", "--resume", tmp_path / "state", "--json", tmp_path / "figures.json")
        figures = []
        for name in ("first", "second"):
            result = succeed("quantize", CUSTOM, "--weight-bits", "4", *QUICK, *kept, "--out", tmp_path / name)
            assert "blocks on 12 samples" in result.stdout
            figures.append(json.loads((tmp_path / "figures.json").read_text())["reconstruction"])
        assert not any(unit["resumed"] for unit in figures[0])
        assert all(unit["resumed"] for unit in figures[1])
        hashes = [json.loads((tmp_path / name / "qdiff.json").read_text())["sha256"] for name in ("first", "second")]
        assert hashes[0] == hashes[1]
        other = run("quantize", CUSTOM, *QUICK, *kept, "--act-bits", "7", "--out", tmp_path / "third")
        assert other.exit_code == 1
        assert "it was begun with another act_bits and another weight_bits" in other.stderr

    def test_every_phase_is_estimated_and_timed(self, quantized: tuple[Path, Result]) -> None:
        estimate = json.loads(quantized[1].stdout)["estimate"]
        assert (estimate["samples"], estimate["steps"], estimate["rows"]) == (4, 3, 12)
        estimated = {name for name, found in estimate["phases"].items() if "estimated_seconds" in found}
        assert estimated == {"sampling", "rounding", "saving"}
        assert all(found["seconds"] >= 0 for found in estimate["phases"].values())
        assert set(estimate["phases"]) - estimated == {"loading", "capturing", "kernels", "measuring"}

    def test_a_dry_run_stops_before_the_work(self, tmp_path: Path) -> None:
        out = ("--out", tmp_path / "net", "--json", "-")
        kept = ("--resume", tmp_path / "kept")
        result = succeed("quantize", CUSTOM, "--steps", "4", "--budget", "2h", "--dry-run", *kept, *out)
        estimate = json.loads(result.stdout)["estimate"]
        assert estimate["rows"] >= 4 * estimate["samples"] > 0
        assert "sampling" in result.stderr
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--budget", "1ms"), "budget: 0.0 s are left for what takes"),
            (("--memory", "1MB"), "memory: sampling takes about"),
            (("--budget", "soon"), "--budget: 'soon' is not an amount"),
            (("--budget", "1h", "--rows", "3"), "rows: the budget chooses the rows"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
        result = run("quantize", CUSTOM, *QUICK, *options, "--out", tmp_path / "net")
        assert result.exit_code == 2
        assert message in result.stderr

    @pytest.mark.slow
    def test_nobody_decides_how_many_are_drawn_together(self, tmp_path: Path) -> None:
        for size in ("1", "4"):
            options = ("--steps", "2", "--samples", "5", "--batch-size", size, "--rounding", "nearest", "--rows", "6")
            succeed("quantize", CUSTOM, *options, "--out", tmp_path / size)
        first, second = (sorted(each.read_bytes() for each in (tmp_path / size).iterdir()) for size in ("1", "4"))
        assert first == second


class TestTune:
    @pytest.fixture(scope="class")
    def tuned(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
        file = tmp_path_factory.mktemp("tune") / "config.json"
        options = ("--target-size", "190kB", "--bits", "2,4,8", "--probe-steps", "2", *QUICK, "--json", "-")
        return file, json.loads(succeed("tune", CUSTOM, "--out", file, *options).stdout)

    def test_its_configuration_gives_a_network_of_that_size(self, tuned: tuple[Path, Any], tmp_path: Path) -> None:
        file, figures = tuned
        bits = {row["path"]: row["weight_bits"] for row in figures["layers"]}
        assert len(set(bits.values())) > 1
        options = ("--config", file, "--act-bits", "7", "--rule", "first=float")
        saved = json.loads(
            succeed("quantize", CUSTOM, *options, *QUICK, "--out", tmp_path / "net", "--json", "-").stdout
        )
        assert saved["bytes"] <= 190_000 + 4 * 32 * 3 * 9  # one layer was taken out
        shown = json.loads(succeed("inspect", tmp_path / "net", *REFERENCE, "--json", "-").stdout)
        rows = {row["path"]: row for row in shown["layers"]["rows"]}
        assert (rows["first"]["weight_bits"], rows["last"]["weight_bits"]) == (0, bits["last"])
        assert rows["last"]["act_bits"] == 7

    @pytest.mark.parametrize("rows", ["0", "-3", "some", "2.5", ""])
    def test_rows_are_a_number_or_all(self, tmp_path: Path, rows: str) -> None:
        result = run("quantize", CUSTOM, "--out", tmp_path / "out", "--rows", rows)
        assert result.exit_code != 0
        assert "--rows" in result.stderr
        assert "is not a number of rows" in result.stderr
        assert parse_rows("12") == 12
        assert parse_rows("all") == ALL_ROWS

    def test_amounts_and_files_that_make_no_sense(self, tmp_path: Path) -> None:
        for options, message in (
            (("--target-size", "30"), "'30' is not an amount"),
            (("--target-latency", "3MB"), "'3MB' is not an amount"),
            (("--target-latency", "fast%"), "'fast%' is not an amount"),
            (("--target-latency", "0%"), "not positive"),
            ((), "nothing to aim at"),
            (("--target-size", "1MB", "--bits", "four"), "'four' is no list of bits"),
        ):
            result = run("tune", CUSTOM, "--out", tmp_path / "c.json", *options)
            assert result.exit_code != 0
            assert message in result.stderr
        broken = tmp_path / "broken.json"
        for text, message in (("[1]", "not an object"), ("{", "not JSON"), ('{"bits": 3}', "unknown fields")):
            broken.write_text(text)
            result = run("quantize", CUSTOM, "--config", broken, "--out", tmp_path / "net")
            assert result.exit_code != 0
            assert message in result.stderr
        assert "no such file" in run("quantize", CUSTOM, "--config", tmp_path / "no", "--out", tmp_path / "n").stderr


class TestSavedNetwork:
    def test_inspect(self, folder: Path) -> None:
        figures = json.loads(succeed("inspect", folder, *REFERENCE, "--json", "-").stdout)
        assert set(figures) == {"folder", "bytes", "source", "backend", "config", "layers"}
        rows = {row["path"]: row for row in figures["layers"]["rows"]}
        assert figures["layers"]["integer"] + figures["layers"]["float"] == len({path.split("[")[0] for path in rows})
        assert (rows["last"]["weight_bits"], rows["middle.conv1"]["weight_bits"]) == (8, 4)
        assert {"merge.shortcut[0:32]", "merge.shortcut[32:64]", "attention"} <= set(rows)

    def test_doctor_names_the_kernels_and_where_they_come_from(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = Status(True, kernel="avx2", library=Path("/cache/qdiff_avx2.so"), operators=Path("/cache/operators.so"))
        monkeypatch.setattr(cli_doctor, "status", lambda: found)
        figures = json.loads(succeed("doctor", "--json", "-").stdout)
        assert (figures["kernels"], figures["from"]) == ("avx2", "compiled here")
        assert figures["operators"] == "/cache/operators.so"

    def test_doctor_says_what_pipelines_lack(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def version(package: str) -> str:
            if package == "accelerate":
                raise cli_doctor.PackageNotFoundError
            return "1.2.3"

        monkeypatch.setattr(cli_doctor, "version", version)
        figures = json.loads(run("doctor", "--json", "-").stdout)
        assert figures["diffusers"] == figures["transformers"] == "1.2.3"
        assert figures["accelerate"] == "not installed: pip install 'qdiff_fx[pipelines]'"

    @pytest.mark.parametrize(("disabled", "code"), [(False, 1), (True, 0)])
    def test_doctor_without_kernels(self, monkeypatch: pytest.MonkeyPatch, disabled: bool, code: int) -> None:
        monkeypatch.setattr(cli_doctor, "status", lambda: Status(False, "no C++ compiler", disabled=disabled))
        result = run("doctor")
        assert result.exit_code == code
        assert "plain torch: no C++ compiler" in result.stdout

    def test_inspect_prints_every_layer(self, folder: Path) -> None:
        output = succeed("inspect", folder, *REFERENCE).stdout
        assert "merge.shortcut[32:64]" in output
        assert "custom_unet.py" in output

    def test_inspect_tells_what_kernels_do_and_why_not_more(self, folder: Path) -> None:
        brief, verbose = (succeed("inspect", folder, *more).stdout for more in ([], ["--verbose"]))
        assert "its kernel also does" in verbose
        assert "not fused" in verbose
        assert "its kernel also does" not in brief

    def test_report(self, folder: Path, tmp_path: Path) -> None:
        page = tmp_path / "report.html"
        result = succeed("report", folder, *TRUSTED, "--images", "1", "--steps", "2", "--out", page)
        assert result.stdout == f"wrote {page}\n"
        text = page.read_text()
        assert text.count('class="pair"') == 1
        for row in load_qdiff(folder).explain():
            assert f"<td>{row.info.path}</td>" in text
        assert text.count(" ms</td>") > 3  # layers are timed
        assert "ε SQNR, mean" in text
        refused = run("report", folder, *TRUSTED, "--out", tmp_path)
        assert refused.exit_code != 0
        assert "it cannot be written (it is a folder)" in refused.stderr

    def test_eval(self, folder: Path, tmp_path: Path) -> None:
        target = tmp_path / "figures.json"
        result = succeed("eval", folder, *REFERENCE, *TRUSTED, "--images", "2", "--steps", "3", "--json", target)
        figures = json.loads(target.read_text())
        assert figures["timesteps"] == [666.0, 333.0, 0.0]
        decibels = figures["eps_sqnr_db"]["reference"]
        assert len(decibels["per_step"]) == 3
        assert min(decibels["per_step"]) <= decibels["mean"] <= max(decibels["per_step"])
        # One backend agrees with itself exactly; JSON has no infinity.
        assert figures["agreement_db"]["mean"] is None
        assert figures["psnr_db"] > 10
        assert figures["layers"]["float"] == 1
        assert f"{decibels['mean']:.1f} dB" in result.stdout

    def test_the_same_seed_gives_the_same_figures(self, folder: Path) -> None:
        arguments = ("eval", folder, *REFERENCE, *TRUSTED, "--images", "1", "--steps", "2", "--json", "-")
        first, second, other = (
            json.loads(succeed(*arguments, "--seed", seed).stdout)["eps_sqnr_db"] for seed in ("2", "2", "3")
        )
        assert first == second != other

    def test_bench(self, folder: Path) -> None:
        options = ("--rounds", "3", "--warmup", "1", "--batch-size", "2", "--json", "-")
        figures = json.loads(succeed("bench", folder, *REFERENCE, *TRUSTED, *options).stdout)
        assert figures["batch"] == 2
        seconds = figures["seconds_per_step"]
        assert set(seconds) == {"float32 eager", "reference"}
        assert all(0 < times["min"] <= times["median"] <= times["max"] for times in seconds.values())
        expected = seconds["float32 eager"]["median"] / seconds["reference"]["median"]
        assert figures["speedup"] == pytest.approx(expected)

    def test_bench_of_two_networks(self, folder: Path, tmp_path: Path) -> None:
        options = ("--rounds", "2", "--warmup", "1", "--batch-size", "1", "--json", "-", "--against", folder)
        figures = json.loads(succeed("bench", folder, *REFERENCE, *TRUSTED, *options).stdout)
        assert set(figures["seconds_per_step"]) == {"float32 eager", "reference", str(folder)}
        result = run("bench", folder, *REFERENCE, *TRUSTED, "--against", tmp_path / "nowhere")
        assert result.exit_code != 0
        assert "the folder does not exist" in result.stderr

    def test_sample(self, folder: Path, tmp_path: Path) -> None:
        heights = []
        for options in ((), ("--compare",)):
            out = tmp_path / "sheet.png"
            succeed("sample", folder, *REFERENCE, *TRUSTED, "--count", "2", "--steps", "2", "--out", out, *options)
            with Image.open(out) as image:
                heights.append(image.height)
        assert heights[1] == 2 * heights[0]

    @pytest.mark.parametrize("command", [("eval",), ("bench",), ("sample", "--out", "x.png")])
    def test_a_source_that_the_folder_names_is_not_executed(self, folder: Path, tmp_path: Path, command: Any) -> None:
        """It may be anybody's file, or a repository to download."""
        proof = tmp_path / "executed"
        (tmp_path / "source.py").write_text(f"open({str(proof)!r}, 'w')\n")
        theirs = copy_of(folder, tmp_path / "theirs", source=f"{tmp_path}/source.py")
        name, *options = command
        result = run(name, theirs, *REFERENCE, *options)
        assert result.exit_code == 1
        assert "source.py', which is not loaded on a folder's word alone. Pass --source SOURCE" in result.stderr
        assert not proof.exists()

    def test_what_a_terminal_would_obey_is_spelled_out(self, folder: Path, tmp_path: Path) -> None:
        theirs = copy_of(folder, tmp_path / "theirs", source="\x1b]0;mine\x07\x1b[2J\u202e")
        result = run("eval", theirs, *REFERENCE)
        assert "\\x1b]0;mine\\x07\\x1b[2J\\u202e" in result.stderr
        for arguments in (("eval", theirs, *REFERENCE), ("inspect", theirs, *REFERENCE, "--verbose")):
            result = run(*arguments)
            assert not {"\x1b", "\x07", "\u202e"} & {*result.stderr, *result.stdout}


def copy_of(folder: Path, copy: Path, **changes: Any) -> Path:
    """The folder with another manifest, sealed again."""
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "qdiff.json").read_text()) | changes
    manifest["manifest_sha256"] = sealed.manifest_digest(manifest)
    (copy / "qdiff.json").write_text(sealed.manifest_text(manifest))
    return copy


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    out, target = tmp_path / "demo", tmp_path / "figures.json"
    succeed("demo", *REFERENCE, "--samples", "4", "--steps", "2", "--out", out, "--json", target)
    figures: dict[str, Any] = json.loads(target.read_text())
    networks = {row["name"]: row for row in figures["networks"]}
    assert list(networks) == ["FP32", "W8A8", "W4A8"]
    assert networks["W4A8"]["file_bytes"] < networks["W8A8"]["file_bytes"] < networks["FP32"]["file_bytes"]
    assert networks["W4A8"]["eps_sqnr_db"] < networks["W8A8"]["eps_sqnr_db"]
    assert all(0 <= row["accuracy"] <= 1 and row["seconds_per_image"] > 0 for row in networks.values())
    for name in ("samples.png", "ranges.png"):
        with Image.open(out / name) as image:
            image.verify()
    assert "W4A8" in (out / "report.html").read_text()
    assert {"w8a8", "w4a8"} <= {path.name for path in out.iterdir()}


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (("quantize", "nowhere", "--out", "x"), 1, "error: nowhere: there is no such source."),
            (("quantize", "gone.py", "--out", "x"), 1, "error: gone.py: there is no such file."),
            (("quantize", "digits", "--out", "x", "--weight-bits", "9"), 2, "error: Invalid value for '--weight-bits'"),
            (("quantize", "digits", "--out", "x", "--softmax-bits", "9"), 2, "error: --softmax-bits: 9 bits are not"),
            (
                ("quantize", "digits", "--out", "x", "--split", "b"),
                2,
                "'--split': 'b' is not one of shortcut",
            ),
            (("quantize", "digits", "--out", "x", "--act-range", "b"), 2, "'--act-range': 'b' is not one of minmax"),
            (("quantize", "digits", "--out", "x", "--budget", "soon"), 2, "error: --budget: 'soon' is not an amount"),
            (("quantize", "digits", "--out", "x", "--prompt", "a"), 1, "DigitsPipeline takes no prompts. Leave out"),
            (("quantize", "digits", "--out", "x", "--rule", "conv_in"), 2, "a rule has the form PATTERN=float"),
            (("quantize", "digits", "--out", "x", "--steps", "0"), 2, "--steps"),
            (("quantize", "digits", "--out", "x", "--reconstruct", "best"), 2, "not one of fast, standard, paper"),
            (("quantize", "digits"), 2, "Missing option '--out'"),
            (("inspect", "nowhere"), 1, "error: nowhere: the folder does not exist."),
            (("eval", "nowhere"), 1, "error: nowhere: the folder does not exist."),
            (("bench", "nowhere"), 1, "error: nowhere: the folder does not exist."),
            (("sample", "nowhere", "--out", "x.png"), 1, "error: nowhere: the folder does not exist."),
            (("evaluate",), 2, "No such command 'evaluate'"),
            (("inspect",), 2, "Missing argument 'DIR'"),
            (("inspect", "x", "--nonsense"), 2, "No such option: --nonsense"),
        ],
    )
    def test_one_line_and_a_code(self, arguments: tuple[str, ...], code: int, message: str) -> None:
        result = run(*arguments)
        assert result.exit_code == code
        assert result.stdout == ""
        (line,) = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
        assert line.startswith("error: ")
        assert message in line

    def test_a_defective_source_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "model.py"
        path.write_text("def make_scheduler(steps): ...")
        result = run("quantize", path, "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert f"error: {path}: it defines no load_unet()." in result.stderr

    def test_a_rule_that_matches_nothing_is_a_usage_error(self, tmp_path: Path) -> None:
        result = run("quantize", CUSTOM, *QUICK, "--rule", "conv_nothing=float", "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert "Rule('conv_nothing'): the rule matches no layer" in result.stderr

    def test_an_unknown_backend_lists_those_there_are(self, folder: Path) -> None:
        result = run("inspect", folder, "--backend", "abacus")
        assert result.exit_code == 2
        assert "'--backend': 'abacus' is not one of" in result.stderr
        assert "reference" in result.stderr

    def test_a_folder_that_holds_something_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("all of it")
        result = run("quantize", CUSTOM, "--out", tmp_path)
        assert result.exit_code == 1
        assert "it exists and is not a saved network" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_source_that_has_moved_is_said(self, folder: Path) -> None:
        result = run("eval", folder, *REFERENCE, "--source", "moved.py")
        assert result.exit_code == 1
        assert "error: moved.py: there is no such file" in result.stderr

    def test_unforeseen_errors_are_one_line_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise RuntimeError("the kettle\nboiled over")

        monkeypatch.setattr("qdiff_fx.cli.inspect.load_qdiff", fail)
        result = run("inspect", "x")
        assert result.exit_code == 1
        assert result.stderr.splitlines() == [
            "error: RuntimeError: the kettle boiled over (`qdiff --debug …` shows where)"
        ]

    def test_debug_lets_the_error_through(self) -> None:
        result = run("--debug", "inspect", "nowhere")
        assert type(result.exception).__name__ == "ArtifactError"

    def test_json_that_cannot_be_written_is_said(self, folder: Path, tmp_path: Path) -> None:
        result = run("inspect", folder, *REFERENCE, "--json", tmp_path)
        assert result.exit_code == 1
        assert f"error: {tmp_path}: it cannot be written" in result.stderr


class TestRules:
    @pytest.mark.parametrize(
        ("text", "rule"),
        [
            ("conv_in=float", Rule("conv_in", quantize=False)),
            ("up_blocks.*=w8", Rule("up_blocks.*", weight_bits=8, quantize=True)),
            ("*=w4a6s16", Rule("*", weight_bits=4, act_bits=6, softmax_bits=16, quantize=True)),
            ("re:a(?=b).*=a8", Rule("re:a(?=b).*", act_bits=8, quantize=True)),
        ],
    )
    def test_what_is_understood(self, text: str, rule: Rule) -> None:
        assert parse_rule(text) == rule

    @pytest.mark.parametrize("text", ["", "conv", "conv=", "=float", "conv=b4", "conv=8", "conv=w4x", "conv=w99"])
    def test_what_is_not(self, text: str) -> None:
        with pytest.raises(ConfigError):
            parse_rule(text)


def test_help_names_every_command() -> None:
    output = succeed("--help").stdout
    for command in ("demo", "quantize", "inspect", "eval", "bench", "sample"):
        assert command in output


def test_alone_it_shows_its_help_and_fails_at_nothing() -> None:
    result = succeed()
    assert "quantize" in result.output
    assert "error:" not in result.output


def test_the_version_is_said() -> None:
    assert succeed("--version").stdout == f"qdiff_fx {qdiff_fx.__version__}\n"


def test_help_lists_what_an_option_takes() -> None:
    words = " ".join(succeed("quantize", "--help").stdout.replace("│", " ").split())
    for choices in ("shortcut, all, off", "native, inductor, x86, qnnpack", "auto, nearest, second_order", "[2<=x<=8]"):
        assert choices in words


def test_a_shell_completes_commands_and_choices() -> None:
    code = """
import os, sys
from qdiff_fx.cli import main
sys.argv = ["qdiff"]
for typed in ("qdiff qua", "qdiff inspect x --backend na"):
    os.environ |= {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    try:
        main()
    except SystemExit:
        pass
"""
    environment = os.environ | {"_QDIFF_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["quantize", "native"]


class TestWritingIsTriedBeforeTheWork:
    @pytest.fixture
    def blocked(self, tmp_path: Path) -> Path:
        """A name that no folder can be made under: something above it is a file."""
        (tmp_path / "file").write_text("mine")
        return tmp_path / "file" / "out"

    @pytest.mark.parametrize(
        "command",
        [
            ("quantize", "nowhere", "--out"),
            ("tune", "nowhere", "--target-size", "1MB", "--out"),
            ("sample", "nowhere", "--out"),
            ("demo", "--out"),
            ("quantize", "nowhere", "--out", "fine", "--json"),
        ],
    )
    def test_what_cannot_be_written_is_said_first(self, blocked: Path, command: tuple[str, ...]) -> None:
        result = run(*command, blocked)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {blocked}")
        assert "it cannot be written" in result.stderr

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        assert "it cannot be written (it is a folder)" in run("sample", "nowhere", "--out", tmp_path).stderr
        assert list(tmp_path.iterdir()) == []


def test_prompts_are_those_of_the_command_line_then_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def resolve(identifier: str, prompts: list[str], pictures: dict[str, Any]) -> Any:
        given.append(prompts)
        raise ConfigError("stop here")

    monkeypatch.setattr("qdiff_fx.cli.options.resolve", resolve)
    (tmp_path / "prompts.txt").write_text("from a file\n\n")
    arguments = ("--prompt", "a fish", "--prompt", "two birds", "--prompts", tmp_path / "prompts.txt")
    run("quantize", "digits", "--out", tmp_path / "out", *arguments)
    assert given == [["a fish", "two birds", "from a file"]]


@pytest.mark.slow
def test_whoever_stops_reading_is_told_nothing() -> None:
    code = "from qdiff_fx.cli import main; import sys; sys.argv = ['qdiff', 'quantize', '--help']; main()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.close()
        assert started.stderr is not None
        assert started.stderr.read() == b""
        assert started.wait() == 1
