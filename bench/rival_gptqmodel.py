"""The benchmark's door to gptqmodel, run by the Python of its own environment. Its defaults, on given token ids.

The recipe "mse" adds its search for scales, at the exponent its README names (there for another of its methods).
"""

import os

from stages import Clock, ask

# with two cores or fewer, 7.7.0 gives itself fewer threads than it then asks for, and refuses to start
WORKERS = {"GPTQMODEL_CPU_WORKERS": "2"} if (os.cpu_count() or 1) <= 2 else {}


def main() -> None:
    """Quantize one folder into gptqmodel's own (format "gptq")."""
    options, clock = ask(), Clock()
    os.environ.update(WORKERS)
    with clock.stage("import"):
        import gptqmodel
        import numpy
        import torch
        from gptqmodel import GPTQModel, QuantizeConfig

    ids = numpy.load(options.tokens)
    examples = [
        {"input_ids": torch.from_numpy(row).long(), "attention_mask": torch.ones(len(row), dtype=torch.long)}
        for row in ids
    ]
    with clock.stage("load"):
        mse = 2.4 if options.recipe == "mse" else 0.0
        settings = QuantizeConfig(bits=options.bits, group_size=options.group_size, mse=mse)
        model = GPTQModel.load(str(options.base), settings)
    with clock.stage("quantize"):
        model.quantize(examples)
    with clock.stage("save"):
        model.save(str(options.out))
    used = {
        "sym": settings.sym,
        "desc_act": settings.desc_act,
        "act_group_aware": settings.act_group_aware,
        "damp_percent": settings.damp_percent,
        "mse": settings.mse,
        "true_sequential": settings.true_sequential,
        "offload_to_disk": settings.offload_to_disk,
        "batch_size": 1,
        **WORKERS,
    }
    clock.write(options.report, gptqmodel.__version__, used, ("torch", "transformers"))


if __name__ == "__main__":
    main()
