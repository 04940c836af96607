//! How numbers are written.

/// What a figure is divided by, and the unit that it then has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale<'a> {
    divisor: f64,
    pub(super) unit: &'a str,
}

impl<'a> Scale<'a> {
    /// The one for figures of a unit up to `most`.
    pub(super) fn of(unit: &'a str, most: f64) -> Self {
        let (divisor, unit) = match unit {
            "packets/s" if most >= 1e6 => (1e6, "million packets/s"),
            "packets/s" if most >= 1e4 => (1e3, "thousand packets/s"),
            "bytes/s" if most >= 1e6 => (1e6, "MB/s"),
            "part" => (0.01, "%"),
            "us" => (1.0, "µs"),
            unit => (1.0, unit),
        };
        Self { divisor, unit }
    }

    pub(super) fn apply(&self, value: f64) -> f64 {
        value / self.divisor
    }

    pub(super) fn write(&self, value: f64) -> String {
        number(self.apply(value))
    }
}

/// With three significant digits, and every digit of whole thousands.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        0.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        size if size >= 0.01 => 3,
        _ => 5,
    };
    let text = format!("{value:.decimals$}");
    if decimals == 0 { thousands(&text) } else { text }
}

/// Puts a comma between every three digits of a whole number.
pub(super) fn thousands(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("-", rest));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{sign}{text}")
}

/// A label's value for people: numbers of four digits or more get commas.
pub(super) fn label(value: &str) -> String {
    if value.parse::<u64>().is_ok() { thousands(value) } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_all() {
        let written =
            [0.0, 0.00123, 0.0331, 0.97, 0.9996, 9.61, 21.5, 99.96, 1234.0, 1e6].map(number);
        let expected =
            ["0", "0.00123", "0.033", "0.970", "1.00", "9.61", "21.5", "100", "1,234", "1,000,000"];
        assert_eq!(written, expected);
    }

    #[test]
    fn rates_are_written_in_millions() {
        let scale = Scale::of("packets/s", 9.7e6);
        assert_eq!((scale.write(125_000.0), scale.unit), ("0.125".to_owned(), "million packets/s"));
        assert_eq!(Scale::of("part", 1.0).write(0.0006), "0.060");
    }
}
