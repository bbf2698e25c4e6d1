"""The settings of steps that train a model: recovery, distillation and tuning, and what they share."""
