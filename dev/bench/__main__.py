"""The command: `python -m dev.bench`. See README.md beside it."""

import argparse
import asyncio
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dev.bench import charts, contestants, machine, plan, report, runner, workloads
from dev.bench.contestants.base import Contestant
from dev.bench.redis_server import EmptyRedis, RedisUnavailableError, find
from dev.bench.runner import Results
from dev.bench.serve import without_paths
from dev.bench.targets import judge, targets

ROUNDS = 5


def main() -> int:
    """Measure, or read what was measured before; then print, write and draw."""
    options = _options()
    document = json.loads(options.load.read_text()) if options.load else _measure(options)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    _print(document)
    if options.chart is not None:
        for path in charts.draw(Results.load(document["results"]), options.chart):
            print(f"\ndrawn: {path}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dev.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: a rough look")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, with --quick 1")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAMES",
        help="contestants and workloads, comma-separated: "
        f"{', '.join(contestants.NAMES)}; {', '.join(workloads.WORKLOADS)}",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures to a file")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="draw PNGs into a folder")
    parser.add_argument("--load", type=Path, metavar="PATH", help="measure nothing: show a --json")
    parser.add_argument("--redis-url", metavar="URL", help="an empty Redis; default: start one for this run")
    parser.add_argument("--dir", type=Path, help="where the files go; default: a temporary folder")
    options = parser.parse_args()
    unknown = set(options.only) - set(contestants.NAMES) - set(workloads.WORKLOADS)
    if unknown:
        parser.error(f"--only does not know {', '.join(sorted(unknown))}")
    return options


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    sizes = plan.QUICK if options.quick else plan.FULL
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    wanted = [name for name in options.only if name in workloads.WORKLOADS]
    with ExitStack() as stack:
        participants, absent = _participants(options.only)
        redis = _redis(options.redis_url, participants, absent, stack)
        groups = [group for group in plan.cases(sizes, participants) if not wanted or group[0].workload in wanted]
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sitq-bench-", dir=options.dir)))
        description = machine.describe(folder, participants, redis.version if redis else None)
        results = asyncio.run(runner.measure(groups, rounds, folder, redis))
    return {
        "machine": description,
        "settings": {"rounds": rounds, "quick": options.quick, "sizes": asdict(sizes)},
        "absent": absent,
        "notes": {name: kind.note for name, kind in participants.items()},
        "results": results.dump(),
    }


def _participants(only: list[str]) -> tuple[dict[str, type[Contestant]], dict[str, str]]:
    """Who can take part, and why the others cannot."""
    participants: dict[str, type[Contestant]] = {}
    absent: dict[str, str] = {}
    chosen = [name for name in contestants.NAMES if name in only] or contestants.NAMES
    for name in chosen:
        try:
            participants[name] = contestants.load(name)
        except ImportError as error:
            absent[name] = without_paths(f"cannot be imported: {error}")
    return participants, absent


def _redis(
    url: str | None, participants: dict[str, type[Contestant]], absent: dict[str, str], stack: ExitStack
) -> EmptyRedis | None:
    """The Redis, if anybody needs one. If there is none, those who need it are absent."""
    needy = [name for name, kind in participants.items() if kind.needs_redis]
    if not needy:
        return None
    try:
        return find(url, stack)
    except RedisUnavailableError as error:
        for name in needy:
            del participants[name]
            absent[name] = str(error)
        return None


def _print(document: dict[str, Any]) -> None:
    results = Results.load(document["results"])
    for name, value in document["machine"].items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if name == "packages" else value
        print(f"{name:12} {text}")
    settings = document["settings"]
    print(f"{'rounds':12} {settings['rounds']}{' (quick: not to be quoted)' * settings['quick']}\n")
    for text in report.results_tables(results):
        print(text, end="\n\n")
    contestants_table = report.absent_table(document["absent"], document["notes"])
    if contestants_table:
        print(contestants_table, end="\n\n")
    sizes = plan.Sizes(**settings["sizes"])
    print(report.targets_table(judge(target, results) for target in targets(sizes)))


if __name__ == "__main__":
    sys.exit(main())
