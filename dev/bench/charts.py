"""The charts, drawn with matplotlib from the medians."""

from pathlib import Path
from typing import Any

from dev.bench.runner import Results

INK = "#1f2328"
GRID = "#d8dee4"
SITQ = "#0b6e4f"
COLOURS = {
    "sitq": SITQ,
    "sqlite3": "#8c959f",
    "huey": "#bf3989",
    "honker": "#9a6700",
    "litequeue": "#6639ba",
    "saq": "#0969da",
    "streaq": "#bc4c00",
    "arq": "#1b7c83",
    "taskiq": "#a40e26",
}
LABELS = {"sqlite3": "bare sqlite3"}


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the charts that there are figures for into `folder`, which is made if need be."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    charts = {"concurrency.png": _concurrency, "backlog.png": _backlog}
    return [path for name, chart in charts.items() if chart(results, path := folder / name) is not None]


def _concurrency(results: Results, path: Path) -> Path | None:
    """Throughput of one worker process over the number of tasks at a time."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for key, case in results.cases.items():
        if case.workload == "drain" and (value := results.median(key, "per_second")):
            lines.setdefault(case.contestant, []).append((case.concurrency, value))
    if not lines:
        return None
    figure, axes = _axes("No-op tasks per second, one worker process", "tasks at a time")
    axes.set(xscale="log", yscale="log")
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    for name, points in sorted(lines.items(), key=lambda line: -max(y for _, y in line[1])):
        _line(axes, name, sorted(points), LABELS.get(name, name))
    return _save(figure, axes, path)


def _backlog(results: Results, path: Path) -> Path | None:
    """Throughput over the number of other tasks in the file; dotted, that of a file without any."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for key, case in results.cases.items():
        if case.workload == "backlog" and case.backlog and (value := results.median(key, "per_second")):
            lines.setdefault(case.state, []).append((case.backlog, value))
    if not lines:
        return None
    figure, axes = _axes("sitq: tasks per second from a large file, 32 slots", "other tasks in the file")
    axes.set(xscale="log")
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    small = results.median("backlog/sitq/waiting 0", "per_second") or 0.0
    axes.axhline(small, color=INK, linewidth=0.8, linestyle=":", label="none")
    for state, points in lines.items():
        _line(axes, state, sorted(points), state, SITQ if state == "waiting" else "#0969da")
    axes.set_ylim(0, 1.15 * max(small, *(y for points in lines.values() for _, y in points)))
    return _save(figure, axes, path)


def _axes(title: str, across: str) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), dpi=150, layout="constrained")
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.set_xlabel(across, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(
    axes: Any,
    name: str,
    points: list[tuple[float, float]],
    label: str,
    colour: str | None = None,
) -> None:
    own = name == "sitq" or colour is not None
    axes.plot(
        *zip(*points, strict=True),
        marker="o",
        markersize=6 if own else 4,
        linewidth=2.5 if own else 1.4,
        linestyle="--" if name == "sqlite3" else "-",
        color=colour or COLOURS.get(name, INK),
        label=label,
        zorder=3 if own else 2,
    )


def _save(figure: Any, axes: Any, path: Path) -> Path:
    from matplotlib import pyplot as plt

    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=INK)
    figure.savefig(path)
    plt.close(figure)
    return path
