"""The benchmark's door to llm-compressor, run by the Python of its own environment. Its defaults, on given token ids.

The recipe "mse" takes its observer that searches for scales instead of the default one.
"""

from stages import Clock, ask


def main() -> None:
    """Quantize one folder into a compressed-tensors one (pack-quantized)."""
    options, clock = ask(), Clock()
    with clock.stage("import"):
        import llmcompressor
        import numpy
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier
        from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = numpy.load(options.tokens)
    sequences, tokens = ids.shape
    rows = {"input_ids": ids.tolist(), "attention_mask": [[1] * tokens] * sequences}
    with clock.stage("load"):
        model = AutoModelForCausalLM.from_pretrained(options.base)
        tokenizer = AutoTokenizer.from_pretrained(options.base)
    with clock.stage("quantize"):
        search = {"observer": "memoryless_mse"} if options.recipe == "mse" else {}
        weights = QuantizationArgs(
            num_bits=options.bits, type="int", symmetric=True, strategy="group", group_size=options.group_size, **search
        )
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        modifier = GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
        oneshot(
            model=model,
            processor=tokenizer,
            dataset=Dataset.from_dict(rows),
            recipe=modifier,
            max_seq_length=tokens,
            num_calibration_samples=sequences,
        )
    with clock.stage("save"):
        model.save_pretrained(options.out, save_compressed=True)
        tokenizer.save_pretrained(options.out)
    used = {
        "symmetric": True,
        "actorder": str(modifier.actorder),
        "observer": weights.observer,
        "dampening_frac": modifier.dampening_frac,
        "block_size": modifier.block_size,
        "batch_size": 1,
    }
    packages = ("torch", "transformers", "compressed-tensors")
    clock.write(options.report, llmcompressor.__version__, used, packages)


if __name__ == "__main__":
    main()
