"""Fine-tuning jobs: scheduled, watched, judged."""
