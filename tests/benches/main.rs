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
mod footprint;
mod measure;
mod scale;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    machine();
    // The first provider installed stays; nothing else in this process installs one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if wanted("compile") {
        compile::run();
    }
    if wanted("footprint") {
        runtime.block_on(footprint::run());
    }
    if wanted("changes") {
        runtime.block_on(changes::run());
    }
    if wanted("fleet") {
        runtime.block_on(fleet::run());
    }
    if wanted("scale") {
        runtime.block_on(scale::run());
    }
    if wanted("call") {
        runtime.block_on(call::run());
    }
}

/// Where the figures come from.
fn machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo");
    let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().unwrap();
    println!(
        "{} × {}, Linux {}, load {} at the start",
        cores,
        model.map_or("unknown processor", |(_, model)| model),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or("unknown"),
    );
}
