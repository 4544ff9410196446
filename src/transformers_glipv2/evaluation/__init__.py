"""One module a benchmark: functions on predictions and annotations. Needs the `eval` extra."""
