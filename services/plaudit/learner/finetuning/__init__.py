"""Fine-tuning jobs: scheduled, watched; their candidates evaluated."""
