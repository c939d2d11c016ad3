"""What strangers supply, read ten minutes long by a fuzzer that follows coverage: `make fuzz`."""
