//! Runs models: as they are, and with a mistake in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Runs a model to its end, with at most so many preemptions in each execution. Returns the number of executions, or what went
/// wrong in one of them.
pub fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) -> Result<usize, String> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    // A thread of its own: what a failed model leaves behind goes with it.
    let run = move || {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.max_branches = 10_000;
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            model();
        });
    };
    match std::thread::spawn(run).join() {
        Ok(()) => Ok(count.load(Ordering::Relaxed)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            let first = text.unwrap_or_default().lines().next().unwrap_or_default().to_owned();
            Err(format!("execution {}: {first}", count.load(Ordering::Relaxed)))
        }
    }
}

/// It holds, or has failed. Prints how much was checked.
pub fn holds(name: &str, run: impl FnOnce() -> Result<usize, String>) {
    let start = Instant::now();
    match run() {
        Ok(count) => println!("holds: {name}: {count} in {:.1} s", start.elapsed().as_secs_f64()),
        Err(error) => panic!("{name}: {error}"),
    }
}

/// One of the runs must fail: there is a mistake in what runs.
pub fn is_found(mistake: &str, runs: impl IntoIterator<Item = Box<dyn FnOnce() -> Result<usize, String>>>) {
    let start = Instant::now();
    let found = runs.into_iter().find_map(|run| run().err());
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "found: {mistake}: {} in {seconds:.1} s",
        found.unwrap_or_else(|| panic!("not found: {mistake}"))
    );
}
