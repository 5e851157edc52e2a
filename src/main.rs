//! The binary: command line in, exit code out.

/// The system's allocator makes threads wait for one another, as often as a queue's client allocates, or gives each of them
/// memory of its own (`docs/benchmarks.md`). What this one is to do is said in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A build that did not see that file would need more memory than is promised, and say nothing of it.
const _: &str = env!(
    "JEMALLOC_SYS_WITH_MALLOC_CONF",
    "the allocator's settings are missing: build in the repository's folder, or set it as .cargo/config.toml there does"
);

fn main() -> std::process::ExitCode {
    chaintap::cli::main()
}
