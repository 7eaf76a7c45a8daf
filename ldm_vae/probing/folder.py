"""The folder of a probe: begun, gone on with after an interruption, finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ldm_vae.config.rules import require
from ldm_vae.probing.protocol import differences
from ldm_vae.reporting.report import write_report
from ldm_vae.system.files import write_whole
from ldm_vae.system.output_kinds import PROBE, REPORT, is_marked
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.strict_json import dump_json

METRICS, TABLE, SAMPLES = "metrics.json", "table.md", "samples.png"
_WORK = "work"


class ProbeFolder:
    """Where a probe's results go, and what an interrupted one has left.

    Args:
        path: The folder.
        request: What was asked for, which has to be the same where an interrupted probe is gone on with.
        overwrite: Whether an earlier probe is replaced.
        processes: Those that share the work.

    Raises:
        ValueError: The folder holds a finished probe, that of another request, or other things.
    """

    def __init__(self, path: str, *, request: dict[str, Any], overwrite: bool, processes: PartialState) -> None:
        self._output = OutputFolder(path, kind=PROBE)
        self.path = self._output.path
        self.work = self.path / _WORK
        self._processes = processes
        resumed = not overwrite and self._resumes(request)
        if not resumed:
            self._output.check(overwrite=overwrite)
        processes.wait_for_everyone()  # all have looked
        if processes.is_main_process:
            if not resumed:
                files = (METRICS, TABLE, SAMPLES)
                mark = dump_json({"kind": "probe", "request": request}, indent=1)
                if is_marked(self.path, PROBE):
                    self._output.clear()
                self._output.begin(files, mark=mark.encode())
            self.work.mkdir(exist_ok=True)
        processes.wait_for_everyone()

    def _resumes(self, request: dict[str, Any]) -> bool:
        if not is_marked(self.path, PROBE):
            return False
        require(
            not (self.path / METRICS).exists(), f"<output> {self.path} holds a probe already; <overwrite> replaces it"
        )
        try:
            begun = json.loads((self.path / PROBE.mark).read_text())["request"]
        except (ValueError, KeyError, TypeError):
            begun = {}
        others = differences(begun, json.loads(dump_json(request)))
        require(
            not others,
            f"<output> {self.path} holds an unfinished probe that was asked for otherwise ({'; '.join(others[:3])}); "
            f"ask for the same to go on, or give <overwrite>",
        )
        return True

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what a step of the probe gave, as JSON reads it, by taking that step unless an earlier start did."""
        path = self.work / f"{name}.json"
        if not path.is_file():
            made = make()
            if self._processes.is_main_process:
                write_whole(path, json.dumps(made).encode())
            self._processes.wait_for_everyone()
        return json.loads(path.read_text())

    def finish(self, *, metrics: dict[str, Any], table: str, report: bool) -> Path | None:
        """Write the results, the figures last, and remove what only the work needed; return the report's path."""
        if self._processes.is_main_process:
            write_whole(self.path / TABLE, f"{table}\n".encode())
            write_whole(self.path / METRICS, (dump_json(metrics, indent=1) + "\n").encode())
            shutil.rmtree(self.work, ignore_errors=True)
            if report:
                write_report([self.path])
        self._processes.wait_for_everyone()
        return self.path / REPORT if report else None

    def checkpoint(self, number: int, seed: int) -> Path:
        """Return where a training is kept."""
        return self.work / f"training-{number}-{seed}.safetensors"
