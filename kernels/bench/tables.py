"""Write kernels/README.md's tables from what the programs of this folder found.

python kernels/bench/tables.py
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from counting import RESULTS

MARK = "<!-- tables: kernels/bench/tables.py -->"
README = Path(__file__).parents[1] / "README.md"
ORDER = ("v4", "v5e", "v5p", "v6e", "tpu7x", "h200", "b200")


def read(name: str) -> list[dict[str, Any]]:
    """Return a file of results; nothing where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def numerics() -> str:
    """Errors per format, measured on a CPU."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in read("numerics"):
        cells = found.setdefault((row["operation"], row["format"]), [])
        cells += [f"{row['error']:.2g}", f"{row['cosine']:.5f}", f"{row['decibels']:.1f}"]
    head = ["operation", "format", "error", "cosine", "dB", "outliers: error", "cosine", "dB"]
    return table(head, ([*key, *cells] for key, cells in found.items()))


def schedules() -> str:
    """Attention's instruction words at everyone's best blocks."""
    rows = [row for row in read("attention_schedules") if "beside" in row]
    chips = [chip for chip in ORDER if any(row["chip"] == chip for row in rows)]
    lines = []
    for name in sorted({row["name"] for row in rows}, key=lambda n: (n.endswith("reverse"), n)):
        cells = []
        for chip in chips:
            own = [row for row in rows if (row["name"], row["chip"]) == (name, chip)]
            least = min(own, key=lambda row: row["bundles"] + row["beside"], default=None)
            blocks = "" if least is None else " x ".join(str(size) for size in least["sizes"])
            cells.append(
                "" if least is None
                else f"{least['bundles']:,} + {least['beside']:,} ({blocks}; {least['use']:.2f})"
            )  # fmt: skip
        lines.append([name, *cells])
    return table(["kernel", *chips], lines)


def products() -> str:
    """Products' instruction words beside bfloat16's."""
    rows = [row for row in read("matmul_schedules") if "bundles" in row]
    chips = [chip for chip in ORDER if any(row["chip"] == chip for row in rows)]
    names = list(dict.fromkeys(row["name"] for row in rows))
    held = {(row["name"], row["chip"]): row.get("of_bfloat16", "") for row in rows}
    return table(["format", *chips], ([n, *(held.get((n, c), "") for c in chips)] for n in names))


def compiled() -> str:
    """Which cases compile, with spilled bytes or stores, and registers of GPUs."""
    rows = read("compiles")
    chips = [chip for chip in ORDER if any(row["chip"] == chip for row in rows)]
    held = {(row["name"], row["chip"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = []
        for chip in chips:
            row = held.get((name, chip))
            if row is None or "error" in row:
                cells.append("" if row is None else "no")
            else:
                cells.append(f"{row.get('registers', '')} {row['spills']}".strip())
        lines.append([name, *cells])
    return table(["case", *chips], lines)


def cpu() -> str:
    """Time and memory of the plain form on a CPU."""
    head = ["length", "causal", "ms", "of jax.nn's time", "of its memory"]
    return table(head, (
        [row["length"], row["causal"], row["milliseconds"], row["time"], row["memory"]]
        for row in read("attention_cpu_float32")
    ))  # fmt: skip


def main() -> None:
    """Write the part of the file behind its mark."""
    parts = [
        ("Errors against float64, measured on a CPU",
         "Relative error, cosine and signal to noise; the plain forms, which round where the "
         "kernels do (`numerics.py`).", numerics()),
        ("Attention on a CPU, measured",
         "float32, 4 heads of 64; beside `jax.nn.dot_product_attention` in the same run "
         "(`attention_cpu.py`).", cpu()),
        ("Attention's schedules, predicted",
         "Instruction words of the kernel and the compiler's cycles of what is beside it, causal, "
         "bfloat16, 8 heads of 4,096 tokens by 128, "
         "each at its best blocks (which follow, with the share of matrix-unit slots in use); "
         "waiting for memory is left out (`attention_schedules.py`).", schedules()),
        ("Products' schedules, predicted",
         "Instruction words as a share of bfloat16's, 2,048 x 4,096 by 4,096 x 4,096 "
         "(`matmul_schedules.py`).", products()),
        ("What compilers say",
         "Spilled stores on TPUs; registers of a thread and spilled bytes on GPUs "
         "(`compiles.py`).", compiled()),
    ]  # fmt: skip
    text = README.read_text().split(MARK)[0] + MARK
    for title, said, found in parts:
        text += f"\n\n## {title}\n\n{said}\n\n{found}"
    README.write_text(text + "\n")


if __name__ == "__main__":
    main()
