//! Tables for people: columns as wide as their widest cell.

/// Rows under a header. A cell that is a number, or begins with one, is set to the right.
pub(super) fn render<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(width);
    for row in rows {
        for (most, cell) in widths.iter_mut().zip(row) {
            *most = width(cell).max(*most);
        }
    }
    let right: [bool; N] = std::array::from_fn(|column| {
        !rows.is_empty() && rows.iter().all(|row| is_number(&row[column]))
    });
    let line = |cells: [&str; N]| {
        let mut text = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let gap = " ".repeat(widths[column] - width(cell));
            let (before, after) =
                if right[column] { (gap.as_str(), "") } else { ("", gap.as_str()) };
            text.push_str(&[if column == 0 { "" } else { "  " }, before, cell, after].concat());
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut text = line(header);
    for row in rows {
        text.push_str(&line(std::array::from_fn(|column| row[column].as_str())));
    }
    text
}

/// Seconds as people read them: "42s", "3m07s", "2h05m", "12d03h".
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Bytes as people read them: "512 B", "1.5 MB".
pub(super) fn bytes(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if size < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1000.0;
    }
    format!("{size:.1} PB")
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

fn is_number(cell: &str) -> bool {
    cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.contains([':', '.'])
        || cell.ends_with('B')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [row(["192.0.2.1:5", "7", "new"]), row(["[2001:db8::1]:50000", "1234", "x"])];
        assert_eq!(
            render(["FROM", "PACKETS", "STATE"], &rows),
            "FROM                 PACKETS  STATE\n\
             192.0.2.1:5                7  new\n\
             [2001:db8::1]:50000     1234  x\n"
        );
        assert_eq!(render(["A"], &[]), "A\n");
    }

    #[test]
    fn durations_and_bytes() {
        let durations = [0, 59, 61, 3600, 90_061].map(duration);
        assert_eq!(durations, ["0s", "59s", "1m01s", "1h00m", "1d01h"]);
        let sizes = [0, 999, 1500, 2_000_000, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "999 B", "1.5 kB", "2.0 MB", "18446.7 PB"]);
    }
}
