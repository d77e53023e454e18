"""Tables of a comparison: metrics and times of each tool, paired differences, and the totals."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.config.recipe import MACRO_F1_MIN_RATIO
from scripts.benchmarks.lib.comparison.results import Result
from scripts.benchmarks.lib.comparison.study import Study
from scripts.benchmarks.lib.comparison.tools import TOOLS

OWN, PROBE = "finetune", "finetune-probe"
PEERS = tuple(name for name in TOOLS if name not in (OWN, PROBE))


@dataclass(frozen=True)
class Cell:
    """All results of a tool on a case with some weights, by seed."""

    case: str
    weights: str
    tool: str
    metric: str
    by_seed: Mapping[int, Result]

    @property
    def values(self) -> list[float]:
        """Test metric of each seed."""
        return [result["test"][self.metric] for result in self.by_seed.values()]

    @property
    def error(self) -> float:
        """One minus the mean of the metric."""
        return 1 - statistics.mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for one seed."""
        return compute_spread(self.values)


@dataclass(frozen=True)
class Pairs:
    """Two tools on the same images, weights and seeds.

    Attributes:
        differences: Metric of the first minus that of the second, per seed.
        cpu_ratios: CPU time of the first divided by that of the second.
        wall_ratios: The same for wall time.
        num_same_round: Number of ratios whose runs are of one round; if there are any, the ratios
            are of these only.
    """

    differences: list[float]
    cpu_ratios: list[float]
    wall_ratios: list[float]
    num_same_round: int


@dataclass(frozen=True)
class CaseSummary:
    """The compared tools on a case with some weights.

    Attributes:
        own: finetune.
        probe: The linear probe of finetune, or None.
        peer: The peer with the smallest error, or None.
    """

    own: Cell
    probe: Cell | None
    peer: Cell | None

    @property
    def peer_is_ahead(self) -> bool:
        """Whether the best peer's mean is higher by more than its standard deviation."""
        return self.peer is not None and self.own.error - self.peer.error > self.peer.spread

    @property
    def probe_is_ahead(self) -> bool:
        """Whether the probe's mean is higher by more than its standard deviation."""
        return self.probe is not None and self.own.error - self.probe.error > self.probe.spread


def compute_spread(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def build_cells(results: Sequence[Result], study: Study) -> list[Cell]:
    """Return a cell for each tool, case and weights that have results."""
    cells = []
    for case in study.cases:
        of_case = [r for r in results if r["case"] == case.name]
        metric: str = case.metric
        if metric == "auto":
            ratio = max((r["imbalance_ratio"] for r in of_case), default=1.0)
            metric = "macro_f1" if ratio > MACRO_F1_MIN_RATIO else "accuracy"
        for weights in study.weights:
            for tool in TOOLS:
                by_seed = {
                    r["seed"]: r
                    for r in of_case
                    if r["tool"] == tool
                    and (r["backbone"], r["weights"]) == (weights.backbone, weights.file.name)
                }
                if by_seed:
                    cells.append(Cell(case.name, weights.label, tool, metric, by_seed))
    return cells


def compute_pairs(first: Cell, second: Cell) -> Pairs:
    """Return the paired differences and ratios of two tools."""
    pairs = [
        (first.by_seed[seed], second.by_seed[seed])
        for seed in first.by_seed
        if seed in second.by_seed
    ]
    metric = first.metric
    timed = [(a, b) for a, b in pairs if a["round"] == b["round"]]
    num_same_round = len(timed)
    timed = timed or pairs
    return Pairs(
        [a["test"][metric] - b["test"][metric] for a, b in pairs],
        [a["cpu"] / b["cpu"] for a, b in timed],
        [a["wall"] / b["wall"] for a, b in timed],
        num_same_round,
    )


def summarise_cases(cells: Sequence[Cell]) -> list[CaseSummary]:
    """Return finetune, its probe and the best peer of each case; seeds that all have.

    Only the seeds of finetune count for the other tools, so that the means are of the same images;
    a tool with none of them is left out.
    """
    summaries = []
    for own in (cell for cell in cells if cell.tool == OWN):
        others = [
            Cell(c.case, c.weights, c.tool, c.metric, shared)
            for c in cells
            if (c.case, c.weights) == (own.case, own.weights) and c.tool != OWN
            for shared in [{s: r for s, r in c.by_seed.items() if s in own.by_seed}]
            if shared
        ]
        probe = next((cell for cell in others if cell.tool == PROBE), None)
        peers = [cell for cell in others if cell.tool in PEERS]
        peer = min(peers, key=lambda cell: cell.error, default=None)
        summaries.append(CaseSummary(own, probe, peer))
    return summaries


def print_cells(cells: Sequence[Cell]) -> None:
    """Print the metric and the times of each tool, and its differences to finetune."""
    print(
        f"\n{'case':<18}{'weights':<24}{'tool':<16}{'n':>2}  {'metric':<9}"
        f"{'mean':>7} {'sd':>6}  {'min-max':<15}{'CPU s':>7}{'wall s':>8}"
        "  finetune minus it: mean, sd"
    )
    own = {(c.case, c.weights): c for c in cells if c.tool == OWN}
    for cell in cells:
        values, results = cell.values, list(cell.by_seed.values())
        cpu, wall = (statistics.median(r[name] for r in results) for name in ("cpu", "wall"))
        print(
            f"{cell.case:<18}{cell.weights:<24}{cell.tool:<16}{len(values):>2}  "
            f"{cell.metric.removeprefix('balanced_'):<9}{statistics.mean(values):>7.4f} "
            f"{cell.spread:>6.4f}  {f'{min(values):.4f}-{max(values):.4f}':<15}"
            f"{cpu:>7.0f}{wall:>8.0f}  "
            + _format_difference(own.get((cell.case, cell.weights)), cell)
        )


def _format_difference(own: Cell | None, other: Cell) -> str:
    """Return mean and standard deviation of the paired differences, and the time ratios."""
    if own is None or other.tool == OWN:
        return ""
    pairs = compute_pairs(own, other)
    if not pairs.differences:
        return "no common seed"
    mean, spread = statistics.mean(pairs.differences), compute_spread(pairs.differences)
    note = "" if pairs.num_same_round else " (of other rounds)"
    cpu, wall = (statistics.median(r) for r in (pairs.cpu_ratios, pairs.wall_ratios))
    return f"{mean:+.4f} {spread:.4f}, CPU x{cpu:.2f}, wall x{wall:.2f}{note}"


def print_totals(summaries: Sequence[CaseSummary]) -> None:
    """Print probe, finetune and best peer of each case, and the means over the cases."""
    if not summaries:
        print("\nNo case has results of finetune: no totals.")
        return
    print(
        f"\n{'case':<18}{'weights':<24}{'n':>2}{'probe':>9}{'finetune':>10}{'peer':>9}  "
        f"{'best peer':<16}{'errors gone':>11}{'err ratio':>11}{'CPU ratio':>11}"
    )
    for s in summaries:
        gone = f"{1 - s.own.error / s.probe.error:.2f}" if s.probe and s.probe.error else "-"
        error = f"{s.own.error / s.peer.error:.2f}" if s.peer and s.peer.error else "-"
        cpu = compute_pairs(s.own, s.peer).cpu_ratios if s.peer else []
        notes = "  probe ahead" * s.probe_is_ahead + "  peer ahead" * s.peer_is_ahead
        print(
            f"{s.own.case:<18}{s.own.weights:<24}{len(s.own.values):>2}"
            f"{_format_mean(s.probe):>9}{_format_mean(s.own):>10}{_format_mean(s.peer):>9}  "
            f"{s.peer.tool if s.peer else '-':<16}{gone:>11}{error:>11}"
            f"{f'{statistics.median(cpu):.2f}' if cpu else '-':>11}{notes}"
        )
    print()
    print("\n".join(describe_totals(summaries)))


def describe_totals(summaries: Sequence[CaseSummary]) -> list[str]:
    """Return the lines on all cases together."""
    lines = []
    probed = [(s.own, s.probe) for s in summaries if s.probe is not None]
    if probed:
        own, probe = (
            statistics.mean(c.error for c in cells) for cells in zip(*probed, strict=True)
        )
        below = [_name(s.own) for s in summaries if s.probe_is_ahead]
        lines.append(
            f"probe ({len(probed)} cases): mean error {probe:.4f}, of finetune {own:.4f}: "
            f"{1 - own / max(probe, 1e-12):.1%} of the probe's errors gone"
        )
        lines.append(f"finetune below its probe by more than the spread: {_join(below)}")
    compared = [(s.own, s.peer) for s in summaries if s.peer is not None]
    if compared:
        own, peer = (
            statistics.mean(c.error for c in cells) for cells in zip(*compared, strict=True)
        )
        pairs = [compute_pairs(a, b) for a, b in compared]
        ratios = [statistics.median(p.cpu_ratios) for p in pairs]
        mixed = sum(not p.num_same_round for p in pairs)
        ahead = [_name(s.own) for s in summaries if s.peer_is_ahead]
        lines += [
            f"best peer ({len(compared)} cases): mean error {peer:.4f}, of finetune {own:.4f}: "
            f"ratio {own / max(peer, 1e-12):.2f}",
            "CPU time, finetune / best peer: geometric mean "
            f"{statistics.geometric_mean(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
            + (f"; {mixed} cases with runs of different rounds only" if mixed else ""),
            f"peer ahead by more than its spread: {_join(ahead)}",
        ]
    return lines


def _format_mean(cell: Cell | None) -> str:
    return f"{statistics.mean(cell.values):.4f}" if cell else "-"


def _name(cell: Cell) -> str:
    return f"{cell.case} with {cell.weights}"


def _join(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
