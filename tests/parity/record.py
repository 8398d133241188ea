"""Record `own/stream.safetensors`: `python -m tests.parity.record`, after the golden fixtures agree.

Record again only when a change of the numbers is meant; the commit says why.
"""

from __future__ import annotations

from safetensors.torch import save_file

from tests.parity.own_model import RECORDED, RUNS, make_inputs, make_weights, run


def main() -> None:
    weights, inputs = make_weights(), make_inputs()
    outputs = {f"out.{name}": run(weights, inputs, stream) for name, stream in RUNS.items()}
    tensors = {f"weights.{k}": v for k, v in weights.items()} | {f"in.{k}": v for k, v in inputs.items()} | outputs
    save_file({k: v.contiguous() for k, v in tensors.items()}, RECORDED)
    print(f"{RECORDED}: {RECORDED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
