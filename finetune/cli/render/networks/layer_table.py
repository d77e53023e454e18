"""Table of layers, fitted to a screen, and the lines that say where most of their costs lie."""

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from rich.markup import escape
from rich.table import Table

from finetune.units import format_bytes, format_count

_MAX_LAYERS_OF_GROUP = 7
_MAX_ROWS = 48
_NUM_LARGEST = 3

FIXED = "(fixed)"
"""Row of the kept tensors whose size does not depend on the batch."""

Row = Mapping[str, Any]


def build_layer_table(tree: Mapping[str, Any]) -> Table:
    """Return a table of layers from the input to the loss.

    Layers of a group are listed one by one if they are few, else by the blocks that hold them;
    where that takes more than a screen, there is one row for each group.

    Args:
        tree: Layers as ``describe_layers`` returns them.
    """
    rows = _select_rows(tree["layers"])
    totals = tree["totals"]
    fixed = {"num_parameters": 0, "num_macs": 0, "activation_bytes": totals["fixed_bytes"]}
    if totals["fixed_bytes"]:
        rows.append({"name": FIXED, "output_shape": [], **fixed})
    kept = totals["activation_bytes"] + totals["fixed_bytes"]
    rows.append({"name": "total", "output_shape": [], **totals, "activation_bytes": kept})
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("\nlayer", overflow="fold")
    for header in ("\noutput", "\nparameters", "multiply-adds\nper image", "activations\nkept"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(row["name"]),
            " x ".join(map(str, row["output_shape"])),
            _format_count(row["num_parameters"]),
            _format_count(row["num_macs"]),
            format_bytes(row["activation_bytes"]) if row["activation_bytes"] else "-",
            style="bold" if row["name"] == "total" else None,
        )
    return table


def describe_layers(tree: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table: what was measured, where most lies, and the phases."""
    height, width = tree["image_size"]
    lines = [
        f"At {width} x {height} px in {tree['precision']}; activations: tensors kept for the "
        f"backward pass of {format_count(tree['batch_size'], 'image')}."
    ]
    if tree["totals"]["fixed_bytes"]:
        lines.append(f"{FIXED}: kept whatever the batch, such as weights in another precision.")
    rows = _select_rows(tree["layers"])
    for key, title in (
        ("num_parameters", "parameters"),
        ("num_macs", "multiply-adds"),
        ("activation_bytes", "activations"),
    ):
        total = sum(row[key] for row in rows)
        ranked = sorted(rows, key=itemgetter(key), reverse=True)[:_NUM_LARGEST]
        largest = ", ".join(f"{row['name']} ({row[key] / total:.0%})" for row in ranked if row[key])
        if largest:
            lines.append(f"Most {title}: {largest}.")
    for phase in tree["phases"]:
        groups = phase["groups"]
        names = groups[0] if len(groups) == 1 else f"{groups[0]} to {groups[-1]}"
        first, last = phase["first_epoch"], phase["last_epoch"]
        kept = format_bytes(phase["activation_bytes"] + phase["fixed_bytes"])
        if first == last:
            lines.append(f"Epoch {first} trains {names} and keeps {kept}.")
        else:
            lines.append(f"Epochs {first}-{last} train {names} and keep {kept}.")
    if not tree["phases"]:
        lines.append("The backbone is frozen: no activations but the input of the head are kept.")
    return lines


def _select_rows(layers: Sequence[Row]) -> list[Row]:
    """Return the rows of the table: layers and blocks, or groups where those are too many."""
    rows = list(_iter_rows(layers))
    if len(rows) > _MAX_ROWS:
        rows = [_sum(name, members) for name, members in _group_rows(layers)]
    return rows


def _iter_rows(layers: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows of all groups, each by its layers or by its blocks."""
    for name, members in _group_rows(layers):
        if len(members) <= _MAX_LAYERS_OF_GROUP:
            yield from members
            continue
        blocks: dict[str, list[Row]] = {}
        common = _count_common([member["name"].split(".") for member in members])
        length = max(common + 1, len(name.split(".")))
        for member in members:
            blocks.setdefault(".".join(member["name"].split(".")[:length]), []).append(member)
        for block, parts in blocks.items():
            yield _sum(block or name, parts)


def _group_rows(layers: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return the layers of each group, in the order in which the groups begin."""
    groups: dict[str, list[Row]] = {}
    for layer in layers:
        groups.setdefault(layer["group"] or layer["name"], []).append(layer)
    return list(groups.items())


def _sum(name: str, members: Sequence[Row]) -> Row:
    """Return one row for several layers, with the output of the last one."""
    keys = ("num_parameters", "num_macs", "activation_bytes")
    shapes = [member["output_shape"] for member in members if member["output_shape"]]
    return {
        "name": name,
        "output_shape": shapes[-1] if shapes else [],
        **{key: sum(member[key] for member in members) for key in keys},
    }


def _count_common(paths: Sequence[Sequence[str]]) -> int:
    """Return the number of leading components that all paths share."""
    count = 0
    while all(len(path) > count + 1 and path[count] == paths[0][count] for path in paths):
        count += 1
    return count


def _format_count(value: int) -> str:
    """Return a count in three digits with its unit; a dash for none."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            number = value / size
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"
    return str(value) if value else "-"
