"""The benchmark's door to Fujitsu OneComp, run by the Python of its own environment. GPTQ with its QEP, on given ids.

The recipe "mse" adds its search for scales and its order of columns by activations. OneComp draws calibration text by
itself: its loader is replaced by one that returns the ids.
"""

from typing import Any

from stages import Clock, ask

RECIPES: dict[str, dict[str, Any]] = {"default": {}, "mse": {"mse": True, "actorder": True}}


def main() -> None:
    """Quantize one folder into OneComp's variety of AutoGPTQ's format."""
    options, clock = ask(), Clock()
    with clock.stage("import"):
        import numpy
        import onecomp
        import torch
        from onecomp.calibration import CalibrationConfig
        from onecomp.qep import QEPConfig, _quantize_with_qep_arch
        from onecomp.quantizer.gptq import GPTQ

    ids = torch.from_numpy(numpy.load(options.tokens)).long()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    _quantize_with_qep_arch.prepare_calibration_dataset = lambda **_: given
    sequences, tokens = ids.shape
    quantizer = GPTQ(wbits=options.bits, groupsize=options.group_size, sym=True, **RECIPES[options.recipe])
    runner = onecomp.Runner(
        # its default of float16 is slow on CPUs, and no dtype of the base
        model_config=onecomp.ModelConfig(path=str(options.base), dtype="bfloat16", device="cpu"),
        quantizer=quantizer,
        calibration_config=CalibrationConfig(max_length=tokens, num_calibration_samples=sequences),
        qep=True,
        qep_config=QEPConfig(device="cpu"),
    )
    clock.wall["load"] = clock.cpu["load"] = 0.0  # it loads the model when it quantizes
    with clock.stage("quantize"):
        runner.run()
    with clock.stage("save"):
        runner.save_quantized_model(str(options.out))
    used = {
        "dtype": "bfloat16",
        **{name: getattr(quantizer, name) for name in ("percdamp", "blocksize", "actorder", "mse", "sym")},
        **{name: getattr(runner.qep_config, name) for name in ("perccorr", "exclude_layer_keywords")},
    }
    clock.write(options.report, onecomp.__version__, used, ("torch", "transformers"))


if __name__ == "__main__":
    main()
