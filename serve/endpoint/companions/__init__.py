"""What an engine computes beside its model: a smaller one that drafts for it, and LoRA adapters."""
