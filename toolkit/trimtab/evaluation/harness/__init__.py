"""lm-eval's tasks, solved by a contender; what is in here takes the extra `lm-eval`."""
