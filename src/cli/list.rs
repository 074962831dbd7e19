//! `runsc list`: the containers under `--root`.

use serde_json::json;

use super::args::{Globals, ListArgs};
use crate::container::state::{self, Record};
use crate::container::{Context, Result};

/// Prints a table, names or JSON.
pub fn run(globals: &Globals, args: &ListArgs) -> Result<i32> {
    let records = state::list(&globals.state_root())?;
    let text = if args.quiet {
        records.iter().map(|record| format!("{}\n", record.id)).collect()
    } else if args.format == "json" {
        json(&records)?
    } else {
        let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
        table(std::iter::once(header).chain(records.iter().map(row)).collect())
    };
    super::print(&text)?;
    Ok(0)
}

fn json(records: &[Record]) -> Result<String> {
    let mut all = Vec::with_capacity(records.len());
    for record in records {
        let mut one = serde_json::to_value(record.oci()?).map_err(std::io::Error::from).doing(|| "list")?;
        one["created"] = json!(record.created);
        all.push(one);
    }
    Ok(format!("{}\n", json!(all)))
}

fn row(record: &Record) -> [String; 6] {
    let running = record.sentry.filter(|sentry| sentry.is_alive());
    [
        record.id.clone(),
        running.map_or(0, |sentry| sentry.pid).to_string(),
        record.status().to_string(),
        record.bundle.display().to_string(),
        record.created.clone(),
        owner(record.owner),
    ]
}

fn owner(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// Columns as wide as their widest cell.
fn table(rows: Vec<[String; 6]>) -> String {
    let widths: [usize; 6] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
