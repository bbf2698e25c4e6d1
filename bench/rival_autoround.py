"""The benchmark's door to AutoRound, run by the Python of its own environment. A recipe of its own, on given token ids.

It tunes rounding and clipping by signed gradients, 200 steps per block by default ("light": 50), and is asked to write
the "auto_gptq" format.
"""

from typing import Any

from stages import Clock, ask

RECIPES: dict[str, dict[str, Any]] = {
    "default": {"iters": 200},
    "light": {"iters": 50, "lr": 5e-3},
}  # as its command line names them


def main() -> None:
    """Quantize one folder into AutoGPTQ's format."""
    options, clock = ask(), Clock()
    with clock.stage("import"):
        import auto_round
        import numpy
        import torch
        from auto_round import AutoRound

    ids = torch.from_numpy(numpy.load(options.tokens)).long()
    sequences, tokens = ids.shape
    batch = min(8, sequences)
    rows = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(batch)]
    settings = {**RECIPES[options.recipe], "seqlen": tokens, "nsamples": sequences, "batch_size": batch}
    with clock.stage("load"):
        tuner = AutoRound(
            str(options.base),
            scheme="W4A16",
            bits=options.bits,
            group_size=options.group_size,
            sym=True,
            dataset=rows,
            device_map="cpu",
            **settings,
        )
    with clock.stage("quantize"):  # and save: it writes shards while it goes on
        tuner.quantize_and_save(str(options.out), format="auto_gptq")
    (inner,) = (path for path in options.out.iterdir() if path.is_dir())  # it makes a folder of its own inside
    for file in inner.iterdir():
        file.rename(options.out / file.name)
    inner.rmdir()
    clock.wall["save"] = clock.cpu["save"] = 0.0
    clock.write(
        options.report, auto_round.__version__, {"recipe": options.recipe, **settings}, ("torch", "transformers")
    )


if __name__ == "__main__":
    main()
