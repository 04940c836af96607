//! Which rounds count: a rule that stands before the run.

use anyhow::{Result, ensure};

/// How much more the slower of a round's two references may take than the faster one.
const TOLERANCE: f64 = 0.1;

/// The rule, as the results state it.
pub(crate) const RULE: &str = "A reference is measured first and last in each round. A round in which the two differ by more \
     than 10 % was disturbed: it is discarded, whatever came of it, and repeated; at most as many rounds \
     are repeated as were asked for.";

/// How many rounds, and whether the rule is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) rounds: usize,
    /// All count, however disturbed: to see whether everything works, not for figures.
    pub(crate) is_rehearsal: bool,
}

/// What was measured in the rounds that count.
#[derive(Debug, PartialEq)]
pub(crate) struct Rounds<V> {
    /// One value per round: the mean of the reference's two.
    pub(crate) reference: Vec<f64>,
    /// What each round returned.
    pub(crate) kept: Vec<V>,
    pub(crate) discarded: u32,
}

impl Rounds<Vec<f64>> {
    /// The values at one place of what the rounds returned: one per round.
    pub(crate) fn at(&self, place: usize) -> Vec<f64> {
        self.kept.iter().map(|values| values[place]).collect()
    }
}

/// Measures rounds until as many as wanted were undisturbed, or twice as many have been measured.
/// `reference` measures something that costs the same all the time, `round` everything else.
///
/// # Errors
///
/// Those of the measurements, and if no round counts.
pub(crate) fn undisturbed<S, V>(
    wanted: Wanted,
    state: &mut S,
    mut reference: impl FnMut(&mut S) -> Result<f64>,
    mut round: impl FnMut(&mut S) -> Result<V>,
) -> Result<Rounds<V>> {
    let mut rounds = Rounds { reference: Vec::new(), kept: Vec::new(), discarded: 0 };
    for _ in 0..2 * wanted.rounds {
        if rounds.kept.len() == wanted.rounds {
            break;
        }
        let first = reference(state)?;
        let values = round(state)?;
        let last = reference(state)?;
        let is_disturbed = first.max(last) > first.min(last) * (1.0 + TOLERANCE);
        if is_disturbed && !wanted.is_rehearsal {
            rounds.discarded += 1;
            continue;
        }
        rounds.reference.push((first + last) / 2.0);
        rounds.kept.push(values);
    }
    ensure!(
        !rounds.kept.is_empty(),
        "all of {} rounds were disturbed: the reference differed by more than 10 % between their \
         beginning and end. Stop what else runs on this machine",
        rounds.discarded
    );
    Ok(rounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measures what a list of references says; each round returns its own number.
    fn measured(wanted: usize, references: &[f64]) -> Result<Rounds<Vec<f64>>> {
        let mut state = (references.iter(), 0.0);
        let reference = |state: &mut (std::slice::Iter<'_, f64>, f64)| {
            Ok(*state.0.next().expect("no more references than rounds have"))
        };
        let wanted = Wanted { rounds: wanted, is_rehearsal: false };
        undisturbed(wanted, &mut state, reference, |state| {
            state.1 += 1.0;
            Ok(vec![state.1, -state.1])
        })
    }

    #[test]
    fn disturbed_rounds_are_repeated() {
        let rounds = measured(3, &[10.0, 10.9, 10.0, 11.1, 11.1, 10.0, 9.5, 10.0, 8.0, 8.0]);
        let rounds = rounds.unwrap();
        assert_eq!(rounds.discarded, 2);
        assert_eq!(rounds.at(0), [1.0, 4.0, 5.0]);
        assert_eq!(rounds.at(1), [-1.0, -4.0, -5.0]);
        assert_eq!(rounds.reference, [10.45, 9.75, 8.0]);
    }

    #[test]
    fn repetition_has_an_end() {
        let rounds = measured(2, &[1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 2.0]).unwrap();
        assert_eq!((rounds.at(0), rounds.discarded), (vec![2.0], 3));
        let error = measured(1, &[1.0, 2.0, 2.0, 1.0]).unwrap_err().to_string();
        assert!(error.contains("all of 2 rounds were disturbed"), "{error}");
    }
}
