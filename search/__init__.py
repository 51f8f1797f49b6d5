"""Which recipe next? The only importer of Optuna. Knows neither the database nor torch."""
