//! Reads TOML tables key by key and collects every mistake with its place.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::value::ValueError;

/// Everything that is wrong with a configuration, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Nothing where it is what is missing, or comes from a flag.
    pub place: Option<Place>,
    /// The key with the names of the tables around it; empty where the file is no TOML.
    pub key: String,
    pub problem: Problem,
}

/// Line and column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("{0}")]
    Syntax(String),
    #[error("unknown key{}", hint(.nearest))]
    UnknownKey { nearest: Option<&'static str> },
    #[error("missing")]
    Missing,
    #[error("{0}")]
    Value(#[from] ValueError),
}

fn hint(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |key| format!("; did you mean {key}?"))
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { line, column }) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        match self.key.as_str() {
            "" => write!(f, " {}", self.problem),
            key => write!(f, " {key}: {}", self.problem),
        }
    }
}

/// The text of a file and what was found in it.
pub(super) struct Source<'t> {
    text: &'t str,
    mistakes: RefCell<Vec<Mistake>>,
    places: RefCell<BTreeMap<String, Place>>,
    /// Keys that were asked for, with whether they were there.
    asked: RefCell<BTreeMap<String, bool>>,
}

/// A table of the file.
pub(super) struct Table<'s> {
    source: &'s Source<'s>,
    path: String,
    entries: &'s DeTable<'s>,
    known: RefCell<Vec<&'static str>>,
}

impl<'t> Source<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            mistakes: RefCell::default(),
            places: RefCell::default(),
            asked: RefCell::default(),
        }
    }

    /// The file's top table, as far as it is TOML.
    pub(super) fn parse(&self) -> Spanned<DeTable<'t>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let problem = Problem::Syntax(error.message().to_owned());
            self.mistake(error.span(), String::new(), problem);
        }
        table
    }

    pub(super) fn table<'s>(&'s self, path: &str, entries: &'s DeTable<'s>) -> Table<'s>
    where
        't: 's,
    {
        Table { source: self, path: path.to_owned(), entries, known: RefCell::default() }
    }

    pub(super) fn mistake(&self, span: Option<Range<usize>>, key: String, problem: Problem) {
        let place = span.map(|span| self.place(span.start));
        self.mistakes.borrow_mut().push(Mistake { place, key, problem });
    }

    /// What was found: mistakes in the order of the file, and the place of each key.
    pub(super) fn finish(self) -> (Vec<Mistake>, BTreeMap<String, Place>, BTreeMap<String, bool>) {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort_by_key(|mistake| mistake.place);
        (mistakes, self.places.into_inner(), self.asked.into_inner())
    }

    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        Place { line, column: before[line_start..].chars().count() + 1 }
    }
}

impl<'s> Table<'s> {
    /// The value of `key`, if it is there and right.
    pub(super) fn read<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&DeValue<'s>) -> Result<T, ValueError>,
    ) -> Option<T> {
        let value = self.get(key)?;
        parse(value.get_ref())
            .map_err(|error| {
                self.source.mistake(Some(value.span()), self.path_of(key), error.into())
            })
            .ok()
    }

    /// As [`Self::read`]; it is a mistake if the key is missing.
    pub(super) fn require<T>(
        &self,
        key: &'static str,
        span: Range<usize>,
        parse: impl FnOnce(&DeValue<'s>) -> Result<T, ValueError>,
    ) -> Option<T> {
        if !self.has(key) {
            self.source.mistake(Some(span), self.path_of(key), Problem::Missing);
        }
        self.read(key, parse)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// The values of the array `key`, if it is there.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&DeValue<'s>) -> Result<T, ValueError>,
    ) -> Option<Vec<T>> {
        let value = self.get(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            let error = ValueError::Expected("an array, as in [\"a\", \"b\"]");
            self.source.mistake(Some(value.span()), self.path_of(key), error.into());
            return None;
        };
        let item = |(index, item): (usize, &Spanned<DeValue<'s>>)| {
            let path = format!("{}[{index}]", self.path_of(key));
            parse(item.get_ref())
                .map_err(|error| self.source.mistake(Some(item.span()), path, error.into()))
                .ok()
        };
        Some(array.iter().enumerate().filter_map(item).collect())
    }

    /// The table `key`, if it is there.
    pub(super) fn table(&self, key: &'static str) -> Option<Self> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(entries) => Some(self.source.table(&self.path_of(key), entries)),
            _ => {
                let error =
                    ValueError::Expected("a table, as [name] on a line of its own begins it");
                self.source.mistake(Some(value.span()), self.path_of(key), error.into());
                None
            }
        }
    }

    /// The tables `[[key]]`, each with its place in the file, if there are any.
    pub(super) fn tables(&self, key: &'static str) -> Option<Vec<(Self, Range<usize>)>> {
        let value = self.get(key)?;
        let wrong = |span| {
            let error =
                ValueError::Expected("tables, as [[name]] on a line of its own begins each");
            self.source.mistake(Some(span), self.path_of(key), error.into());
        };
        let DeValue::Array(array) = value.get_ref() else {
            wrong(value.span());
            return None;
        };
        let item = |(index, item): (usize, &'s Spanned<DeValue<'s>>)| match item.get_ref() {
            DeValue::Table(entries) => {
                let path = format!("{}[{index}]", self.path_of(key));
                Some((self.source.table(&path, entries), item.span()))
            }
            _ => {
                wrong(item.span());
                None
            }
        };
        Some(array.iter().enumerate().filter_map(item).collect())
    }

    /// Whatever has not been asked for is a mistake.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for (key, _) in self.entries {
            if known.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let nearest = nearest(key.get_ref(), &known);
            let problem = Problem::UnknownKey { nearest };
            self.source.mistake(Some(key.span()), self.path_of(key.get_ref()), problem);
        }
    }

    fn get(&self, key: &'static str) -> Option<&'s Spanned<DeValue<'s>>> {
        self.known.borrow_mut().push(key);
        let found = self.entries.get_key_value(key);
        let (path, there) = (self.path_of(key), found.is_some());
        *self.source.asked.borrow_mut().entry(path.clone()).or_default() |= there;
        let (name, value) = found?;
        self.source.places.borrow_mut().insert(path, self.source.place(name.span().start));
        Some(value)
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// The known key that is most like `key`, if one is like it.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let (distance, nearest) =
        known.iter().map(|candidate| (distance(key, candidate), *candidate)).min()?;
    (distance <= 1 + key.len() / 3).then_some(nearest)
}

/// How many characters must be put in, left out or changed to make one of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found() {
        let known = ["listen", "limits", "interfaces", "instance"];
        assert_eq!(nearest("lsten", &known), Some("listen"));
        assert_eq!(nearest("interface", &known), Some("interfaces"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
