"""The command: what it takes and refuses, what the page holds, and that nothing in it is markup that wasn't meant."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ldm_vae.cli import main
from ldm_vae.config.commands.report import ReportOptions
from ldm_vae.reporting.limits import Limits
from ldm_vae.reporting.report import report as make_report
from ldm_vae.reporting.report import write_report
from ldm_vae.system.output_kinds import EVALUATION, RUN, output_kind
from tests.reporting.conftest import HOSTILE

MAX_BYTES = 300_000


class Elements(HTMLParser):
    """All start tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def without_pictures(path: Path) -> str:
    return re.sub(r"data:image/\w+;base64,[\w+/=]+", "", path.read_text(encoding="utf-8"))


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_commands_leave_a_page_of_their_own(evaluated: Path, trained: Path) -> None:
    for folder, kind in ((evaluated, EVALUATION), (trained, RUN)):
        assert (folder / "report.html").read_bytes().startswith(b"<!doctype html>")
        assert output_kind(folder) is kind


def test_nothing_is_loaded_and_only_its_own_script_runs(report: Path) -> None:
    html = report.read_text(encoding="utf-8")
    elements = Elements(html)
    for tag, attributes in elements.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag
            if name in ("src", "href", "srcset", "data", "poster", "action"):
                assert value is not None
                assert value.startswith(("data:", "#")), value
    policies = [a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    policy = dict(part.split(" ", 1) for part in (policies[0] or "").split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    for tag in ("script", "style"):
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(contents) == 1
        digest = base64.b64encode(hashlib.sha256(contents[0].encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_names_are_shown_and_are_no_markup(report: Path) -> None:
    elements = Elements(report.read_text(encoding="utf-8"))
    assert HOSTILE in elements.text
    assert not [attributes for tag, attributes in elements.tags if tag == "img" and attributes.get("src") == "x"]
    assert "\u202e" not in elements.text
    assert "\u2028" not in elements.text


def test_it_holds_figures_with_their_protocol(report: Path, evaluated: Path) -> None:
    text = Elements(report.read_text(encoding="utf-8")).text
    for evaluation in json.loads((evaluated / "metrics.json").read_text())["evaluations"]:
        assert f"{evaluation['metrics']['psnr']['value']:.2f}" in text
        assert evaluation["metrics"]["ssim"]["protocol"] in text
        assert f"{evaluation['panel']['figures']['spectral_slope']:.4f}" in text
    assert "slope of log power over log frequency" in text
    assert "<wbr>" not in text  # names may break after `_`, by an element that isn't shown
    assert "broken.png" not in text
    assert "1 skipped as unreadable" in text
    assert "Norm of the autoencoder's gradient before clipping. Healthy: falls, then steady" in text
    assert "max_train_steps: 12" in text


def test_it_is_small_beside_its_pictures(report: Path, evaluated: Path, tmp_path: Path) -> None:
    assert len(without_pictures(report).encode()) < MAX_BYTES
    large = copied(evaluated, tmp_path / "large")
    file = large / "per_picture.jsonl"
    first = json.loads(file.read_text(encoding="utf-8").split("\n")[0])
    lines = [first | {"index": 100 + i, "name": f"{i:06d} {'long name ' * 9}.png", "kept": None} for i in range(2000)]
    with file.open("a", encoding="utf-8") as opened:
        opened.writelines(json.dumps(line) + "\n" for line in lines)
    assert_small(write_report([large], output=tmp_path / "a.html"), f"The worst {Limits().rows} of 2007 images")
    metrics = json.loads((large / "metrics.json").read_text())
    metrics["evaluations"] *= 6
    metrics["pictures"][0]["spectra"]["reconstructions"] *= 6
    (large / "metrics.json").write_text(json.dumps(metrics))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    with file.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps(line | {"figures": line["figures"] * 6}) + "\n" for line in lines)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("output_dir: run\n" + "# " + "x" * 100_000)
    names = ("rec", "perceptual", "kl", "loss", "g", "d", "logits_real", "logits_fake", "lam", "grad_norm", "lr")
    with (run / "metrics.jsonl").open("w") as opened:
        opened.writelines(
            json.dumps({"step": step, **{name: 1 / (step + 7.123456) + i for i, name in enumerate(names)}}) + "\n"
            for step in range(8_000)
        )
    assert_small(write_report([large, run], output=tmp_path / "b.html"), "The worst 42 of 2007 images")


def assert_small(path: Path, said: str) -> None:
    html = without_pictures(path)
    assert len(html.encode()) < MAX_BYTES
    assert said in html


def test_evaluations_of_the_same_images_stand_together(evaluated: Path, tmp_path: Path) -> None:
    other = copied(evaluated, tmp_path / "other")
    metrics = json.loads((other / "metrics.json").read_text())
    for evaluation in metrics["evaluations"]:
        evaluation["vae_fingerprint"] = evaluation["name"] = f"another {evaluation['name'][:5]}"
    metrics["evaluations"][1]["vae_fingerprint"] = json.loads((evaluated / "metrics.json").read_text())["evaluations"][
        1
    ]["vae_fingerprint"]
    (other / "metrics.json").write_text(json.dumps(metrics))
    elements = Elements(write_report([evaluated, other], output=tmp_path / "a.html").read_text(encoding="utf-8"))
    assert sum("comparison" in (a.get("class") or "") for _, a in elements.tags) == 1
    assert sum(tag == "div" and a.get("class") == "subject" for tag, a in elements.tags) == 3
    assert "another plain" in elements.text
    assert "is shown once" in elements.text
    metrics["evaluations"][0]["data_fingerprint"] = metrics["evaluations"][1]["data_fingerprint"] = "of other images"
    (other / "metrics.json").write_text(json.dumps(metrics))
    elements = Elements(write_report([evaluated, other], output=tmp_path / "a.html").read_text(encoding="utf-8"))
    assert sum("comparison" in (a.get("class") or "") for _, a in elements.tags) == 2


def test_pictures_that_are_lost_are_counted(evaluated: Path, tmp_path: Path) -> None:
    folder = copied(evaluated, tmp_path / "out")
    made = sorted((folder / "pictures").glob("*-1.webp"))
    made[0].unlink()
    made[1].write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    made[2].unlink()
    made[2].symlink_to(evaluated / "pictures" / made[2].name)  # leads out of the folder
    elements = Elements(write_report([folder]).read_text(encoding="utf-8"))
    assert "3 picture files are missing or damaged." in elements.text
    assert not any((a.get("src") or "").startswith("data:image/svg") for _, a in elements.tags)


def test_evaluations_of_earlier_versions_have_their_figures(evaluated: Path, tmp_path: Path) -> None:
    folder = copied(evaluated, tmp_path / "out")
    (folder / "per_picture.jsonl").unlink()
    shutil.rmtree(folder / "pictures")
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["pictures"], metrics["measures"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    text = Elements(write_report([folder]).read_text(encoding="utf-8")).text
    assert f"{metrics['evaluations'][0]['metrics']['psnr']['value']:.2f}" in text
    assert "was written without figures and pictures of single images" in text


def test_a_quickstart_is_its_evaluation_and_its_run(evaluated: Path, trained: Path, tmp_path: Path) -> None:
    copied(evaluated, tmp_path / "quick" / "evaluation")
    copied(trained, tmp_path / "quick" / "run")
    (tmp_path / "quick" / ".ldm-vae-quickstart").write_text("{}")
    text = Elements(write_report([tmp_path / "quick"]).read_text(encoding="utf-8")).text
    assert "Means over all images" in text
    assert "12 updates" in text


def test_runs_are_drawn_in_the_same_frames(trained: Path, tmp_path: Path) -> None:
    other = copied(trained, tmp_path / "other")
    alone = Elements(write_report([trained], output=tmp_path / "a.html").read_text(encoding="utf-8"))
    both = Elements(write_report([trained, other], output=tmp_path / "b.html").read_text(encoding="utf-8"))

    def plots(elements: Elements) -> list[str | None]:
        return [attributes["aria-label"] for tag, attributes in elements.tags if tag == "svg"]

    assert plots(both) == plots(alone)
    assert {"rec", "loss", "grad_norm", "logits", "psnr"} <= set(plots(alone))
    lines = [sum("line" in (a.get("class") or "") for tag, a in e.tags if tag == "path") for e in (alone, both)]
    assert lines[1] == 2 * lines[0]
    assert "other" in both.text


def test_only_reports_are_replaced(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.html"
    for _ in range(2):
        summary = make_report(ReportOptions(outputs=[str(trained)], output=str(path)))
    assert str(summary) == f"report: {path}"
    path.write_text("<!doctype html><p>years of work")
    with pytest.raises(ValueError, match=r"mine\.html is there and is no report of ldm-vae; name another file"):
        make_report(ReportOptions(outputs=[str(trained)], output=str(path)))
    assert "years of work" in path.read_text()
    with pytest.raises(ValueError, match="is a folder; name an HTML file"):
        make_report(ReportOptions(outputs=[str(trained)], output=str(tmp_path)))
    with pytest.raises(ValueError, match=r"page\.html can't be made: .*mine\.html is a file"):
        make_report(ReportOptions(outputs=[str(trained)], output=str(path / "new" / "page.html")))


def damage(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", '{"kind": "evaluations", "options": {}, "evaluations": [1]}'),
        ("metrics.json", '{"kind": "evaluations", "options": {"data": "x"}, "evaluations": [{"resolution": 32}]}'),
        ("metrics.json", '{"kind": "evaluations", "options"'),
        ("per_picture.jsonl", '{"index": 3}\n'),
        ("per_picture.jsonl", "[3]\n"),
    ],
)
def test_a_damaged_file_is_one_line(evaluated: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = damage(copied(evaluated, tmp_path / "out"), name, content)
    with pytest.raises(ValueError, match=rf"outputs: .*{name} isn't as `ldm-vae evaluate` writes it$"):
        write_report([folder])


def test_a_folder_of_no_command_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, told in (("", "holds no results"), ("missing", "is no folder")):
        with pytest.raises(SystemExit) as end:
            main(["report", str(tmp_path / name)])
        assert end.value.code == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert told in lines[0]


def test_what_has_no_page_is_named(evaluated: Path, tmp_path: Path) -> None:
    for name, mark, content, told in (
        ("density", "metrics.json", '{"kind": "density"}', "density is a density, which has no page"),
        ("quick", ".ldm-vae-quickstart", "{}", "quick is a quickstart that hasn't begun to train"),
        ("probe", "probe.json", '{"kind": "probe"}', "probe is a probe that isn't finished"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).write_text(content)
        with pytest.raises(ValueError, match=told):
            write_report([evaluated, tmp_path / name], output=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_folder_named_twice_is_shown_once(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(trained)
    alone, twice = (
        Elements(write_report(folders, output=tmp_path / f"{len(folders)}.html").read_text(encoding="utf-8"))
        for folders in ([trained], [trained, tmp_path / "link"])
    )
    assert [a for tag, a in twice.tags if tag == "path"] == [a for tag, a in alone.tags if tag == "path"]


def test_the_best_validation_is_a_number(trained: Path, tmp_path: Path) -> None:
    run = copied(trained, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = [line for line in lines if "validation/psnr" in line]
    assert len(validated) == 2
    validated[0]["validation/psnr"], validated[1]["validation/psnr"] = None, 12.5
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = Elements(write_report([run]).read_text(encoding="utf-8")).text
    assert "best validation PSNR 12.50 dB, after 12 updates" in text


def test_a_page_is_made_without_torch(trained: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from ldm_vae.cli import main; main(sys.argv[1:]); "
        "sys.exit([name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules] or None)"
    )
    arguments = ["report", str(trained), "--output", str(tmp_path / "a.html")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, cwd=tmp_path, capture_output=True)
