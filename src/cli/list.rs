//! `runsc list`: the containers under `--root`.

use super::args::{Globals, ListArgs};
use crate::container::state::{self, Record};
use crate::container::{Context, Result, life};

/// Prints a table, names or JSON.
pub fn run(globals: &Globals, args: &ListArgs) -> Result<i32> {
    let root = globals.state_root();
    let mut records = state::list(&root)?;
    let statuses = life::statuses(&root, &records);
    records.iter_mut().zip(statuses).for_each(|(record, status)| record.status = status);
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
    // As runc has it.
    if records.is_empty() {
        return Ok("null\n".into());
    }
    let all: Vec<_> = records.iter().map(Record::document).collect();
    let text = serde_json::to_string(&all).map_err(std::io::Error::from).doing(|| "list")?;
    Ok(text + "\n")
}

fn row(record: &Record) -> [String; 6] {
    let document = record.document();
    [
        document.id,
        document.pid.to_string(),
        document.status.to_string(),
        document.bundle.display().to_string(),
        document.created,
        document.owner,
    ]
}

/// Columns as wide as their widest cell.
pub fn table<const N: usize>(rows: Vec<[String; N]>) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
