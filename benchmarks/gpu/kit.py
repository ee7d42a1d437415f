"""Everything a GPU can show, in parts: each in a process of its own, with a limit, skipped once it has passed.

    bash benchmarks/gpu/run.sh [--python PYTHON] [--work DIR] [--out RESULTS] [--budget SECONDS] [PART ...]

Exit code 0: nothing differed. 1: something did, failed or was cut off. 3: there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from carry.pieces import pack
from carry.there import ARCHIVE
from parts import MEDIUM, PARTS, VERDICT, Part, probes_of
from record import (
    ROOT,
    SHAPE,
    TINY,
    Facts,
    Kit,
    NotAvailableError,
    Recorder,
    asked_alike,
    identity,
    kept_steps,
    one_line,
    read,
    result_of,
    save,
    write_whole,
)
from report import LEFT_OUT, headline, reason_of, render

LIMIT_S = 540
SHAPES = (SHAPE, MEDIUM, TINY)
LEAST_S = 30
"""A part that has begun goes on with no less; one that has not needs what it usually takes."""
CUT_OFF = "cut off"
"""How the error of a part begins that was ended before it had done its work."""
NO_GPU = "no NVIDIA GPU or driver was found here: every part needs one (run.sh --list shows the parts)"


def main(words: list[str] | None = None) -> int:
    """Run parts, or list them."""
    arguments = parser().parse_args(words)
    if arguments.list:
        print(listing())
        return 0
    kit = Kit(
        work=arguments.work.resolve(), out=arguments.out.resolve(),
        shape=arguments.shape or (TINY if arguments.on_cpu else SHAPE), runtime=arguments.runtime,
        rehearse=arguments.on_cpu,
    )  # fmt: skip
    if not kit.rehearse and not gpu_is_there():
        print(NO_GPU, file=sys.stderr)
        return 3
    if arguments.inside:
        return inside(named(arguments.inside), kit, again=arguments.again)
    run = Run(kit, limit=arguments.limit, again=arguments.again, budget=arguments.budget)
    kit.out.mkdir(parents=True, exist_ok=True)
    parts = with_probes([named(name) for name in arguments.parts] or PARTS, kit)
    results = [run.one(part) for part in run.untried_first(parts)]
    archive = kit.out.parent / ARCHIVE
    pack(kit.out, archive, last_words=True)
    print(f"\nreport: {write_report(kit.out)}\nall of it: {archive}")
    return int(any(result["passed"] is False for result in results))


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", metavar="PART", help="default: all, in order")
    options.add_argument("--list", action="store_true", help="what each part shows, and about how long it takes")
    options.add_argument("--work", type=Path, default=Path("gpu-work"), help="for checkpoints, programs and engines")
    options.add_argument("--out", type=Path, default=Path("gpu-results"), help="for results")
    options.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for a part (default %(default)s)")
    options.add_argument("--again", action="store_true", help="also what has passed already")
    options.add_argument("--budget", type=float, help="seconds for all of them; parts that would not fit are left")
    options.add_argument("--shape", choices=SHAPES, help=f"of the full-size parts (default: {SHAPE})")
    options.add_argument("--runtime", choices=("tensorrt", "tensorrt-rtx"), help="of the full-size engines")
    options.add_argument("--on-cpu", action="store_true", help="run the code without a GPU; shows nothing of one")
    options.add_argument("--inside", help=argparse.SUPPRESS)
    return options


def gpu_is_there() -> bool:
    from glm_export.machine.gpu import has_driver

    return has_driver()


def listing() -> str:
    """Every part with what it shows."""
    width = max(len(part.name) for part in PARTS)
    lines = [f"{part.name:{width}}  about {part.minutes} min  {part.shows}" for part in PARTS]
    return "\n".join([*lines, f"{len(PARTS)} parts; minutes are guesses until they have run on a GPU"])


def named(name: str) -> Part:
    found = [part for part in PARTS if part.name == name]
    if not found:
        parser().error(f"part {name!r} is unknown; run.sh --list shows those there are")
    return found[0]


def with_probes(parts: Sequence[Part], kit: Kit) -> list[Part]:
    """Parts, each after the probes that say whether it can run."""
    ordered: list[Part] = []
    for part in parts:
        ordered += [one for one in (*probes_of(part, kit.runtime), part) if one not in ordered]
    return ordered


@dataclass
class Run:
    """Parts one after the other. ``limit``: seconds for one; ``budget``: for all, None: no end."""

    kit: Kit
    limit: float = LIMIT_S
    again: bool = False
    budget: float | None = None
    started: float = field(default_factory=time.monotonic)

    def kit_of(self, part: Part) -> Kit:
        """With the part's own shape, where it has one; a rehearsal knows but the smallest."""
        return self.kit if part.shape is None or self.kit.shape == TINY else replace(self.kit, shape=part.shape)

    @property
    def left(self) -> float:
        """Seconds."""
        return float("inf") if self.budget is None else self.budget - (time.monotonic() - self.started)

    def untried_first(self, parts: Sequence[Part]) -> list[Part]:
        """Parts in order, but what failed by itself in this very code comes after the rest: it would fail again."""
        return sorted(parts, key=lambda part: (part.name == VERDICT, self.failed_before(part)))

    def failed_before(self, part: Part) -> bool:
        """Whether it ran to its end in this code, and failed; one that was cut off goes on, a probe is asked anew."""
        kit = self.kit_of(part)
        found = read(kit.out, part.name)
        if part.always or found is None or found["passed"] is not False or found["code"] != identity(kit):
            return False
        return not str(found.get("error", "")).startswith(CUT_OFF)

    def one(self, part: Part) -> Facts:
        """One part's result, from its file if it has passed, and a line on the terminal."""
        kit = self.kit_of(part)
        earlier = read(kit.out, part.name)
        stands = earlier is not None and earlier["passed"] and asked_alike(earlier["code"], identity(kit))
        if earlier is not None and stands and not self.again and not part.always:
            print(f"{part.name}: passed already, {earlier['made']} (--again runs it again)", flush=True)
            return earlier
        print(f"{part.name} ...", end=" ", flush=True)
        why = closed(part, kit) or self.too_long(part, kit)
        result = not_run(part, kit, why) if why else self.apart(part, kit)
        print(headline(result), flush=True)
        write_report(kit.out)
        return result

    def too_long(self, part: Part, kit: Kit) -> str | None:
        """Why a part is left: its usual time, less what it has done already, is more than there is."""
        done = sum(step["seconds"] for step in kept_steps(kit.out, part.name, identity(kit)))
        needed = part.limit or max(LEAST_S, 60 * part.minutes - done)
        if (part.always and part.limit is None) or needed <= self.left:
            return None
        return f"{LEFT_OUT}it takes about {needed:.0f} s, and {max(0, self.left):.0f} s of the budget were left"

    def apart(self, part: Part, kit: Kit) -> Facts:
        """Run a part in a process of its own, and end it with all it started where it takes too long."""
        (kit.out / f"{part.name}.json").unlink(missing_ok=True)
        log, started = kit.out / f"{part.name}.log", time.perf_counter()
        limit = min(part.limit or self.limit, max(self.left, LEAST_S))
        try:
            why = self._waited_for(part, kit, log, limit)
        except SystemExit:
            cut_off(part, kit, time.perf_counter() - started, f"{CUT_OFF} with the whole run", log)
            raise
        result = read(kit.out, part.name)
        return result or cut_off(part, kit, time.perf_counter() - started, why, log)

    def _waited_for(self, part: Part, kit: Kit, log: Path, limit: float) -> str:
        """How a part's process ended."""
        with log.open("w", encoding="utf-8") as said:
            process = subprocess.Popen(
                command(part, kit, again=self.again or part.always), stdout=said, stderr=subprocess.STDOUT, cwd=ROOT,
                env=environment(), start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(limit)
                return f"ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
            except subprocess.TimeoutExpired:
                return f"{CUT_OFF} at its limit of {limit:g} s; run it again to go on from there"
            finally:
                end_group(process)


def closed(part: Part, kit: Kit) -> str | None:
    """Why a part cannot run here: no probe of its runtimes passed."""
    found = [(probe.name, read(kit.out, probe.name)) for probe in probes_of(part, kit.runtime)]
    if not found or any(result is not None and result["passed"] for _, result in found):
        return None
    return "; ".join(f"{name}: {reason_of(result)}" for name, result in found)


def not_run(part: Part, kit: Kit, reason: str) -> Facts:
    """A part's file that says why it did not run; one that ran before and is worth more stays.

    What failed in this code has failed, whether or not there is time to try again.
    """
    earlier = read(kit.out, part.name)
    if earlier is not None and earlier["steps"]:
        failed = earlier["passed"] is False and earlier["code"] == identity(kit)
        return earlier | {"passed": False if failed else None, "reason": reason}
    result = result_of(part.name, [], kit, 0.0, facts={}, code=identity(kit)) | {"reason": reason}
    save(kit.out, result)
    return result


def command(part: Part, kit: Kit, *, again: bool) -> list[str]:
    words = [sys.executable, str(Path(__file__).resolve()), "--inside", part.name, "--work", str(kit.work)]
    words += ["--out", str(kit.out), "--shape", kit.shape, *(["--again"] if again else [])]
    return [*words, *(["--runtime", kit.runtime] if kit.runtime else []), *(["--on-cpu"] if kit.rehearse else [])]


def environment() -> dict[str, str]:
    """Processes that a part starts find this checkout, installed or not."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # The first: parts without glm_export, which sets it, run ONNX Runtime as well.
    return {"ORT_DISABLE_TELEMETRY": "1"} | os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """The part's process and those it started: they are a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def cut_off(part: Part, kit: Kit, seconds: float, why: str, log: Path) -> Facts:
    """The file of a part that could not write its own: the steps it had done, and why there are no more."""
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = next((line for line in reversed(said) if not line.startswith("{")), "")
    code = identity(kit)
    steps = kept_steps(kit.out, part.name, code)
    result = result_of(part.name, steps, kit, seconds, facts={}, code=code)
    result |= {"passed": False, "error": one_line(f"{why}; its last words: {last}" if last else why)}
    save(kit.out, result)
    return result


def inside(part: Part, kit: Kit, *, again: bool) -> int:
    """A part's own process."""
    recorder = Recorder(part.name, kit, identity(kit), again=again)
    try:
        part.run(recorder)
    except NotAvailableError as missing:
        recorder.reason = str(missing)
    except Exception as error:  # what is known of a part must be written even where it breaks
        traceback.print_exc()
        recorder.error = one_line(error)
    return int(recorder.finish()["passed"] is False)


def write_report(out: Path) -> Path:
    """The report of all results that are there."""
    path = out / "report.md"
    write_whole(path, render([found for part in PARTS if (found := read(out, part.name)) is not None]))
    return path


if __name__ == "__main__":
    # Parts end with this process, which a caller's limit ends with SIGTERM: what is known is then still written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
