"""The density over hidden states: fitting, sampling, judging, scoring documents."""
