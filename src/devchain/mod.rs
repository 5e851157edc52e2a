//! A simulated EVM node in the binary: for the demo, tests, benchmarks and users' own CI.
