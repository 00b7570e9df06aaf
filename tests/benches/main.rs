//! `make bench`: what the mesh costs. Prints the tables of `docs/benchmarks.md`.
//!
//! Names on the command line pick single benchmarks (`make bench BENCH="call compile"`).

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot measure has nothing to do but to fail; its result is what it prints"
)]

mod call;
mod changes;
mod compile;
mod fleet;
mod measure;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(("fleet-of-proxies", rest)) =
        arguments.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        return runtime.block_on(fleet::proxies(rest));
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == name);
    if wanted("compile") {
        compile::run();
    }
    if wanted("call") {
        runtime.block_on(call::run());
    }
    if wanted("changes") {
        runtime.block_on(changes::run());
    }
    if wanted("fleet") {
        runtime.block_on(fleet::run());
    }
}
