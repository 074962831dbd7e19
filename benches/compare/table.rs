//! The table that a group of measurements makes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::common::Runtime;

/// Names and values, in the order in which they are shown.
pub type Figures = Vec<(String, f64)>;

/// What the runtimes are compared with.
#[derive(Clone, Copy)]
pub enum Beside {
    /// The program without a sandbox: values are shown with their ratio to it.
    Native,
    /// The same in containers of `runc`: values are shown with their difference from it.
    Runc,
}

/// Measures natively (`None`) and in each runtime; prints one row a figure, with ratios to native.
pub fn run(title: &str, runtimes: &[Runtime], measure: impl Fn(Option<&Runtime>) -> Figures) {
    run_beside(Beside::Native, title, runtimes, measure);
}

/// Measures what they are compared with (`None`) and each runtime; prints one row a figure.
pub fn run_beside(beside: Beside, title: &str, runtimes: &[Runtime], measure: impl Fn(Option<&Runtime>) -> Figures) {
    println!("\n## {title}\n");
    let name = match beside {
        Beside::Native => "native",
        Beside::Runc => "runc",
    };
    let mut columns = vec![(name, measure(None))];
    for runtime in runtimes {
        // One that cannot do something must not hide what the others can.
        let figures = catch_unwind(AssertUnwindSafe(|| measure(Some(runtime)))).unwrap_or_default();
        columns.push((&runtime.name, figures));
    }
    let names = columns.iter().flat_map(|(_, figures)| figures).map(|(name, _)| name);
    let mut rows: Vec<&String> = Vec::new();
    for name in names {
        if !rows.contains(&name) {
            rows.push(name);
        }
    }
    print!("| |");
    columns.iter().for_each(|(name, _)| print!(" {name} |"));
    print!("\n| --- |");
    columns.iter().for_each(|_| print!(" ---: |"));
    println!();
    for row in rows {
        let value = |figures: &Figures| figures.iter().find(|(name, _)| name == row).map(|figure| figure.1);
        let native = value(&columns[0].1);
        print!("| {row} |");
        for (index, (_, figures)) in columns.iter().enumerate() {
            match (value(figures), native) {
                (None, _) => print!(" – |"),
                (Some(value), Some(native)) if index > 0 && native > 0.0 => match beside {
                    Beside::Native => print!(" {} (×{}) |", digits(value), digits(value / native)),
                    Beside::Runc => print!(" {} ({:+.1}) |", digits(value), value - native),
                },
                (Some(value), _) => print!(" {} |", digits(value)),
            }
        }
        println!();
    }
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}
