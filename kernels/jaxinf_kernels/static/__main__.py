"""Compile what a function of a module returns, for a chip that is not here.

python -m jaxinf_kernels.static MODULE:FUNCTION --chip v5e [--only NAME] [--json FILE]

The function returns cases: ``[(name, function, arguments), ...]``, arguments as
``jax.ShapeDtypeStruct``.
"""

import argparse
import importlib
import json
import sys
from typing import Any

from jaxinf_kernels.static import cuda, tpu


def main() -> int:
    """Print what compilers say; return 1 where a case does not compile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", metavar="MODULE:FUNCTION")
    parser.add_argument("--chip", required=True, choices=[*tpu.TOPOLOGIES, *cuda.TARGETS])
    parser.add_argument("--only", help="of the cases, those of this name")
    parser.add_argument("--json", help="a file that the result is written to as well")
    args = parser.parse_args()
    if args.chip in tpu.TOPOLOGIES:
        tpu.folder()
    module, _, name = args.cases.partition(":")
    sys.path.insert(0, ".")
    cases = getattr(importlib.import_module(module), name)()
    found = [
        describe(name, function, arguments, args.chip)
        for name, function, arguments in cases
        if args.only in (None, name)
    ]
    if args.json:
        with open(args.json, "w") as file:
            json.dump(found, file, indent=1)
    return 1 if any("error" in entry for entry in found) else 0


def describe(name: str, function: Any, arguments: Any, chip: str) -> dict[str, Any]:
    """Compile one case, and print what is found."""
    entry: dict[str, Any] = {"name": name, "chip": chip}
    kernels: list[dict[str, Any]] = []
    try:
        if chip in cuda.TARGETS:
            report = cuda.report(function, *arguments, chip=chip)
            kernels = [kernel._asdict() for kernel in report.kernels]
            own = report.text.count("mosaic_gpu")
        else:
            made = tpu.report(function, *arguments, chip=chip)
            own = made.text.count("tpu_custom_call")
            for kernel in made.kernels:
                every = kernel.root.total(lambda part: 1)
                kernels.append(dict(name=kernel.name, bundles=every.bundles, spills=kernel.spills))
            report = made
        entry |= {"temporary": report.temporary, "own": own > 0, "kernels": kernels}
        print(f"{name}: {report.temporary} bytes of temporary memory")
    except Exception as error:
        entry["error"] = str(error).splitlines()[0][:300] if str(error) else repr(error)
        print(f"{name}: does not compile for {chip}: {entry['error']}")
    for kernel in kernels:
        print("   " + ", ".join(f"{key} {value}" for key, value in kernel.items()))
    return entry


if __name__ == "__main__":
    sys.exit(main())
