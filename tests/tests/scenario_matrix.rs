//! A few cells of the matrix of docs/traversal.md, with few trials each: the nodes, the NATs and what is
//! expected of them. The whole is `cargo xtask matrix`.

use anyhow::{Result, ensure};
use rawr_tests::matrix::{CellResult, Internet, Plan, SUBSET, run};
use rawr_tests::scene::scenario;

/// Trials of a cell. One of them may be in vain where chance has a part.
const TRIALS: u32 = 3;

#[test]
fn a_few_pairs_of_nats_connect_as_expected() {
    scenario("a_few_pairs_of_nats_connect_as_expected", |scene| {
        let (cells, internet) = (SUBSET.to_vec(), Internet::Routed);
        let plan = Plan { cells, trials: TRIALS, few: TRIALS, jobs: 4, internet };
        let results = run(scene, &plan)?;
        ensure!(results.cells.len() == SUBSET.len(), "{} cells", results.cells.len());
        for cell in SUBSET {
            let Some(result) = results.cell(&cell) else { anyhow::bail!("no result of {cell}") };
            check(result, u32::from(cell.is_chance()))?;
        }
        Ok(())
    });
}

fn check(result: &CellResult, may_fail: u32) -> Result<()> {
    let all = result.trials == TRIALS && result.connected == TRIALS;
    let enough = result.successes + may_fail >= TRIALS;
    ensure!(all && enough, "{}\n{:#?}", result.summary(), result.failures);
    Ok(())
}
