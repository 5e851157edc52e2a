//! The binary: command line in, exit code out.

/// The system's allocator makes threads wait for one another, as often as a queue's client allocates, or gives each of them
/// memory of its own (`docs/benchmarks.md`). What this one is to do is said in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chaintap::cli::main()
}
